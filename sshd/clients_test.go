package sshd_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"codeberg.org/devaipod/devaipod/sshd"
)

// What is on a mount of sshfs is a tree like another: written, renamed, linked, resized
// and copied through the kernel.
func TestSSHFS(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatalf("%v; as root: modprobe fuse && chmod 666 /dev/fuse, or give the container that this runs in --device /dev/fuse", err)
	}
	s := serve(t, "")
	there, mount := s.path("there"), s.path("mount")
	for _, dir := range []string{there, mount} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.run(nil, "sshfs", "-F", "CONFIG", "-o", "dir_cache=no,attr_timeout=0,entry_timeout=0", "box:"+there, mount); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("fusermount3", "-u", mount).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	tree(t, rand.New(rand.NewPCG(1, 2)), s.path("tree"), false, "") //nolint:gosec // a test's; of links sshfs sets what they lead to
	script := `set -e
cp -a ../tree .
echo one >a; echo two >b; mv b a; cat a                    # a rename over a file
echo three >>a; wc -l <a; truncate -s 3 a; cat a; echo     # append, and resize
ln -s a link; readlink link; ln a hard; rm link
mkdir -m 750 d; stat -c %a d; chmod 700 d; stat -c %a d; rmdir d
touch -d @1000000000 hard; stat -c %Y hard
dd if=/dev/zero of=hole bs=1 count=1 seek=5G status=none; stat -c %s hole
df --output=size . | tail -n 1 | grep -c '[1-9]'
`
	got := s.run(strings.NewReader(script), "env", "-C", mount, "sh")
	if want := "two\n2\ntwo\na\n750\n700\n1000000000\n5368709121\n1\n"; got.out != want || got.code != 0 {
		t.Errorf("%+v", got)
	}
	if stat(t, there+"/a").Ino != stat(t, there+"/hard").Ino {
		t.Error("the hard link is none")
	}
	if a, b := listing(t, s.path("tree"), true), listing(t, there+"/tree", true); a != b {
		t.Errorf("from\n%sto\n%s", a, b)
	}
}

// curl's sftp is libssh2's.
func TestLibssh2(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	if got := s.run(nil, "curl", "-V"); !strings.Contains(got.out, "libssh2") {
		t.Fatalf("this curl has no libssh2: %s", got.out)
	}
	curl := func(args ...string) result {
		return s.run(nil, append([]string{"curl", "-sS", "--max-time", "60", "-k", "-u", sshd.Me().Name + ":", "--key", s.path("key"), "--pubkey", s.path("key.pub")}, args...)...)
	}
	url := "sftp://127.0.0.1:" + s.port + s.dir + "/"
	data := random(t, 3<<20)
	write(t, s.path("whole"), string(data))
	write(t, s.path("part"), string(data[:1<<20]))
	for name, args := range map[string][]string{
		"put, in a new directory": {"-T", s.path("whole"), "--ftp-create-dirs", url + "new/put"},
		"get":                     {"-o", s.path("got"), url + "whole"},
		"a get that goes on":      {"-C", "-", "-o", s.path("part"), url + "whole"},
	} {
		if got := curl(args...); got.code != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	write(t, s.path("up"), string(data[:1<<20]))
	if got := curl("-C", "-", "-T", s.path("whole"), url+"up"); got.code != 0 {
		t.Errorf("a put that goes on: %+v", got)
	}
	for _, name := range []string{"new/put", "got", "part", "up"} {
		if text, err := os.ReadFile(s.path(name)); err != nil || !bytes.Equal(text, data) {
			t.Errorf("%s: %d bytes, %v", name, len(text), err)
		}
	}
	if got := curl("-Q", fmt.Sprintf("rename %s %s", s.path("up"), s.path("moved")), "-Q", "chmod 640 "+s.path("moved"), "-Q", "rm "+s.path("got"), url); got.code != 0 || !strings.Contains(got.out, "moved") {
		t.Errorf("%+v", got)
	}
	if stat(t, s.path("moved")).Mode&0o777 != 0o640 {
		t.Errorf("%o", stat(t, s.path("moved")).Mode)
	}
	if got := curl(url + "no-such"); got.code != 78 { // CURLE_REMOTE_FILE_NOT_FOUND
		t.Errorf("%+v", got)
	}
}

func TestGitOverSSH(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	got := s.run(strings.NewReader(`set -e
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@x GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@x
git init -q --bare -b main "$1/there.git"
git clone -q "box:$1/there.git" here 2>&1
cd here
git checkout -q -b main
head -c 5000000 /dev/urandom >big; echo text >small
git add .; git commit -q -m first; git push -q origin main
git clone -q "ssh://box$1/there.git" ../again
cmp big ../again/big
GIT_TRACE_PACKET=1 git -C ../again fetch 2>&1 | grep -o 'version 2' | head -n 1
echo more >>small; git commit -q -am second; git push -q origin main
git -C ../again pull -q; git -C ../again log --format=%s
git push -q origin :no-such 2>/dev/null || echo refused
`), "env", "-C", s.dir, "GIT_SSH_COMMAND=ssh -F CONFIG", "sh", "-s", s.dir)
	if got.code != 0 || !strings.HasSuffix(got.out, "version 2\nsecond\nfirst\nrefused\n") {
		t.Errorf("%+v", got)
	}
}

// Keys are renewed in the middle of a transfer, at the wish of either side.
func TestKeysAreRenewed(t *testing.T) {
	t.Parallel()
	data := random(t, 16<<20)
	for name, tt := range map[string]struct {
		change func(*sshd.Config)
		args   []string
	}{
		"by the client": {func(*sshd.Config) {}, []string{"-o", "RekeyLimit=1M"}},
		"by the server": {func(c *sshd.Config) { c.Rekey = 1 << 20 }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, "", tt.change)
			got := s.ssh(bytes.NewReader(data), append(tt.args, "-v", "box", "cat")...)
			if got.code != 0 || got.out != string(data) {
				t.Errorf("%d bytes came back as %d, exit code %d", len(data), len(got.out), got.code)
			}
			if n := strings.Count(got.errs, "SSH2_MSG_NEWKEYS received"); n < 5 {
				t.Errorf("%d times:\n%s", n, got.errs)
			}
			write(t, s.path("from"), string(data))
			if got := s.run(strings.NewReader("put from to\nget to back\n"), append([]string{"env", "-C", s.dir, "sftp", "-F", "CONFIG"}, append(tt.args, "-b", "-", "box:"+s.dir)...)...); got.code != 0 {
				t.Fatalf("%+v", got)
			}
			if back, err := os.ReadFile(s.path("back")); err != nil || !bytes.Equal(back, data) {
				t.Errorf("%d bytes, %v", len(back), err)
			}
		})
	}
}

func TestGamesWithWindows(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	got := s.run(nil, "/usr/bin/python3", "testdata/windows.py", s.port, s.path("key"), s.dir)
	if want := `a packet of 0 is refused
a packet of 1 is refused
a window of 0 holds a writer, others are served and it has 0
a byte of window gives 1
small packets carry all: True
a huge window carries all: True
others are served
an overflow ends it: True
bytes beyond the window end it: True
others are served
`; got.out != want {
		t.Errorf("%+v", got)
	}
	// The writer that was held is gone with its channel.
	text, err := os.ReadFile(s.path("held"))
	if err != nil {
		t.Fatal(err)
	}
	s.gone(text)
}

// A full disk is said to who writes to it, and takes nothing from the file that was to
// be replaced.
func TestAFullDisk(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	full := s.path("full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	// A server in a mount namespace of its own, whose disk has 2 MiB.
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", `mount -t tmpfs -o size=2m full "$0" && echo old >"$0/file" && exec "$1"`, full, os.Args[0])
	cmd.Env = append(os.Environ(), "SSHD_TEST_SERVER="+s.dir)
	s.process(cmd)
	write(t, s.path("large"), string(random(t, 4<<20)))
	for name, tt := range map[string]struct {
		args []string
		says string
	}{
		"scp":         {[]string{"scp", "-F", "CONFIG", s.path("large"), "box:" + full + "/scp"}, "Failure"},
		"the old scp": {[]string{"scp", "-O", "-F", "CONFIG", s.path("large"), "box:" + full + "/oldscp"}, "No space left on device"},
		// It says why two times out of three, with OpenSSH's server as well.
		"rsync": {[]string{"rsync", "-e", "ssh -F CONFIG", s.path("large"), "box:" + full + "/file"}, ""},
	} {
		if got := s.run(nil, tt.args...); got.code == 0 || !strings.Contains(got.errs, tt.says) {
			t.Errorf("%s: %+v", name, got)
		}
		if got := s.ssh(nil, "box", "rm -f "+full+"/*scp; cat "+full+"/file; ls -A "+full); got.out != "old\nfile\n" {
			t.Errorf("after %s: %+v", name, got)
		}
	}
	// As an editor saves: another file, flushed, and renamed over the old one.
	c := s.sftp()
	f, err := c.Create(full + "/new")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, bytes.NewReader(random(t, 4<<20))); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("what is written: %v", err)
	}
	_ = f.Close()
	if err := c.Remove(full + "/new"); err != nil {
		t.Error(err)
	}
	if got := s.ssh(nil, "box", "cat "+full+"/file"); got.out != "old\n" {
		t.Errorf("%+v", got)
	}
	if err := c.Mkdir(full + "/there is room again"); err != nil {
		t.Error(err)
	}
}

// own is a server in a process of its own, whose home and directory is dir.
func own(dir string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SSHD_TEST_SERVER="+dir)
	return cmd
}

// process runs a server of its own process, for a test, in the place of s's.
func (s *served) process(cmd *exec.Cmd) {
	s.t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var errs record
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Log(errs.String())
		}
	})
	old := s.port
	s.port = strings.TrimSpace(readTo(s.t, out, "\n"))
	text, err := os.ReadFile(s.path("config"))
	if err != nil {
		s.t.Fatal(err)
	}
	write(s.t, s.path("config"), strings.Replace(string(text), "Port "+old, "Port "+s.port, 1))
}
