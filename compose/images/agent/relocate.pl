#!/usr/bin/perl
# relocate.pl ROOT DEST PROGRAM... copies programs of the root file system ROOT,
# which is Debian's, into the directory DEST with what they need to run in any
# image, whatever C library it has or has not: their libraries, and a loader that
# looks at no others. They run where DEST is seen as /.agent/usr/lib/dvp.
#
# A program names its loader (PT_INTERP, elf(5)) by a path that it was linked with;
# ours is shorter and takes its place, so nothing in the file moves: opencode finds
# its own code by offsets. The loader's own directories are replaced in the same
# way. No variable tells where the libraries are, since children would have it too.
use strict;
use warnings;

my $home   = "/.agent/usr/lib/dvp";
my $loader = "/lib64/ld-linux-x86-64.so.2";
my $libs   = "/usr/lib/x86_64-linux-gnu";
my ($root, $dest, @programs) = @ARGV;
my %seen;

sub slurp {
    my ($path) = @_;
    open my $f, '<:raw', $path or die "$path: $!\n";
    local $/;
    return scalar <$f>;
}

sub spew {
    my ($path, $text) = @_;
    open my $f, '>:raw', $path or die "$path: $!\n";
    print $f $text or die "$path: $!\n";
    close $f or die "$path: $!\n";
    chmod 0755, $path or die "$path: $!\n";
}

# headers lists the program headers of a 64-bit ELF file: type, offset, address, size.
sub headers {
    my ($elf) = @_;
    my ($at, $size, $n) = unpack 'x32 Q< x14 S< S<', $elf;
    return map { [(unpack 'L< x4 Q< Q< x8 Q<', substr $elf, $at + $_ * $size, $size)[0, 1, 2, 3]] } 0 .. $n - 1;
}

# needed lists the libraries that an ELF file names.
sub needed {
    my ($elf) = @_;
    my @headers = headers($elf);
    my ($dynamic) = grep { $_->[0] == 2 } @headers or return;
    my ($strings, @names);
    for my $i (0 .. $dynamic->[3] / 16 - 1) {
        my ($tag, $value) = unpack 'Q< Q<', substr $elf, $dynamic->[1] + 16 * $i, 16;
        $strings = $value if $tag == 5;
        push @names, $value if $tag == 1;
        last if $tag == 0;
    }
    my ($load) = grep { $_->[0] == 1 && $strings >= $_->[2] && $strings < $_->[2] + $_->[3] } @headers;
    my $offset = $strings - $load->[2] + $load->[1];
    return map { unpack 'Z*', substr $elf, $offset + $_, 256 } @names;
}

sub copy_needed {
    my ($elf) = @_;
    for my $name (needed($elf)) {
        next if $seen{$name}++ || $name =~ /^ld-linux/;
        my $lib = slurp("$root$libs/$name");
        spew("$dest/l/$name", $lib);
        copy_needed($lib);
    }
}

# relocated is the text of a program with another loader.
sub relocated {
    my ($path, $elf) = @_;
    for my $h (headers($elf)) {
        next unless $h->[0] == 3;
        my $was = unpack 'Z*', substr $elf, $h->[1], $h->[3];
        die "$path: its loader is $was, not $loader\n" unless $was eq $loader;
        substr($elf, $h->[1], $h->[3]) = pack "a$h->[3]", "$home/ld";
        return $elf;
    }
    die "$path: not linked with a loader\n";
}

# same_length puts a path in another's place, with slashes to fill it.
sub same_length {
    my ($text, $was, $is) = @_;
    my $fill = length($was) - length $is;
    die "$is is longer than $was\n" if $fill < 0;
    ($$text =~ s/\0\Q$was\E\0/"\0$is" . '\/' x $fill . "\0"/ge) or die "the loader names no $was\n";
}

mkdir $_ for $dest, "$dest/l", "$dest/bin", "$dest/git-core";
my $ld = slurp("$root$libs/ld-linux-x86-64.so.2");
same_length(\$ld, "$libs/", "$home/l/");
same_length(\$ld, substr("$libs/", 4), "$home/l/");
same_length(\$ld, $_, "/.agent/no") for '/etc/ld.so.cache', '/etc/ld.so.preload';
spew("$dest/ld", $ld);
for my $name (@programs) {
    my ($path) = grep { -e "$root/$_" } "usr/bin/$name", "usr/lib/git-core/$name", "usr/local/bin/$name";
    die "$root has no program $name\n" unless $path;
    my $elf = slurp("$root/$path");
    copy_needed($elf);
    my $to = $path =~ /git-core/ ? "$dest/git-core/$name" : "$dest/bin/$name";
    spew($to, relocated($path, $elf));
}
# Git's own: scripts, and names of git that it looks for as programs.
for my $path (glob "$root/usr/lib/git-core/*") {
    my $name = $path =~ s{.*/}{}r;
    next if -e "$dest/git-core/$name" || -d $path;
    if (-l $path) {
        my $is = readlink $path;
        $is = '../bin/git' if $is =~ m{^(.*/)?git$};
        symlink $is, "$dest/git-core/$name" or die "$name: $!\n" if $is =~ m{^(\.\./bin/git|git-remote-http)$};
    } elsif (slurp($path) =~ /^#!/ || $name =~ /--|git-sh-/ && slurp($path) !~ /^\x7fELF/) {
        spew("$dest/git-core/$name", slurp($path));
    }
}
