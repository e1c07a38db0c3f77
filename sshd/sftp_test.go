package sshd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/sftp"

	"codeberg.org/devaipod/devaipod/sshd"
)

// tree makes a random tree of files with modes and times, with links if they
// are wanted, without a name that a client cannot have.
func tree(t *testing.T, r *rand.Rand, dir string, links bool, cannot string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir, 0o700))
	names := []string{"plain", "with space", "ünïcode", "-dash", "quote'\"", "back\\slash", "new\nline", "bytes-\xff\xfe", ".hidden", "glob*[?]"}
	names = slices.DeleteFunc(names, func(name string) bool { return name == cannot })
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for i, name := range names[:5+r.IntN(4)] {
		path := filepath.Join(dir, name)
		switch {
		case i == 0 && strings.Count(dir, "/") < 12:
			tree(t, r, path, links, cannot)
		case i == 1 && links:
			must(os.Symlink(names[r.IntN(len(names))], path))
			continue
		default:
			data := make([]byte, []int{0, 1, 100, 32 << 10, 256<<10 + 17}[r.IntN(5)])
			for i := range data {
				data[i] = byte(r.Uint32())
			}
			must(os.WriteFile(path, data, 0o600))
		}
		when := time.Unix(1_000_000_000+r.Int64N(700_000_000), 0)
		must(os.Chmod(path, fs.FileMode([]uint32{0o600, 0o644, 0o755, 0o700, 0o640}[r.IntN(5)]|0o700*b2i(isDir(path)))))
		must(os.Chtimes(path, when, when))
	}
}

func b2i(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

func isDir(path string) bool { info, err := os.Lstat(path); return err == nil && info.IsDir() }

// listing is all that a copy has to have: names, kinds, modes, times and bytes.
func listing(t *testing.T, dir string, times bool) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if rel == "." {
			return nil
		}
		fmt.Fprintf(&b, "%q %v", rel, info.Mode())
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			fmt.Fprintf(&b, " -> %q", to)
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", data[:min(len(data), 16)])
			fmt.Fprintf(&b, " %d %d", len(data), sum(data))
			fallthrough
		default:
			if times {
				fmt.Fprintf(&b, " %d", info.ModTime().Unix())
			}
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func sum(data []byte) (n uint64) {
	for _, c := range data {
		n = n*1099511628211 + uint64(c) + 1
	}
	return n
}

// Whatever client carries a tree there and back, it comes back as it was.
func TestTreesSurviveEveryClient(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	seed := uint64(time.Now().UnixNano())
	for name, tt := range map[string]struct {
		links     bool
		cannot    string
		put, back []string
	}{
		"sftp":        {false, "", []string{"sftp", "-F", "CONFIG", "-b", "BATCH-put -pR FROM TO", "box"}, []string{"sftp", "-F", "CONFIG", "-b", "BATCH-get -pR TO BACK", "box"}},
		"scp":         {false, "", []string{"scp", "-F", "CONFIG", "-rpq", "FROM", "box:TO"}, []string{"scp", "-F", "CONFIG", "-rpq", "box:TO", "BACK"}},
		"the old scp": {false, "new\nline", []string{"scp", "-O", "-F", "CONFIG", "-rpq", "FROM", "box:TO"}, []string{"scp", "-O", "-F", "CONFIG", "-rpq", "box:TO", "BACK"}},
		"rsync":       {true, "", []string{"rsync", "-a", "-e", "ssh -F CONFIG", "FROM/", "box:TO/"}, []string{"rsync", "-a", "-e", "ssh -F CONFIG", "box:TO/", "BACK/"}},
		"tar":         {true, "", []string{"sh", "-c", "tar -C FROM -cf - . | ssh -F CONFIG box 'mkdir TO && tar -C TO -xpf -'"}, []string{"sh", "-c", "mkdir BACK && ssh -F CONFIG box tar -C TO -cf - . | tar -C BACK -xpf -"}},
		"paramiko":    {false, "bytes-\xff\xfe", []string{"/usr/bin/python3", "testdata/tree.py", "PORT", "KEY", "put", "FROM", "TO"}, []string{"/usr/bin/python3", "testdata/tree.py", "PORT", "KEY", "get", "TO", "BACK"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			from, to, back := dir+"/from", dir+"/to", dir+"/back"
			tree(t, rand.New(rand.NewPCG(seed, 1)), from, tt.links, tt.cannot) //nolint:gosec // a test's
			for _, args := range [][]string{tt.put, tt.back} {
				args = append([]string{}, args...)
				for i, a := range args {
					a = strings.NewReplacer("FROM", from, "TO", to, "BACK", back, "PORT", s.port, "KEY", s.path("key")).Replace(a)
					if text, ok := strings.CutPrefix(a, "BATCH-"); ok {
						a = filepath.Join(dir, "batch")
						write(t, a, text+"\n")
					}
					args[i] = a
				}
				if got := s.run(nil, args...); got.code != 0 {
					t.Fatalf("%q: exit code %d, seed %d\n%s%s", args, got.code, seed, got.out, got.errs)
				}
			}
			want := listing(t, from, true)
			for _, copied := range []string{to, back} {
				if got := listing(t, copied, true); got != want {
					t.Errorf("seed %d: %s is\n%swant\n%s", seed, copied, got, want)
				}
			}
		})
	}
}

// sftpClient is Go's.
func (s *served) sftp() *sftp.Client {
	s.t.Helper()
	c, err := sftp.NewClient(s.dial())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestNamesAreChangedAsTheProtocolWantsIt(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	c := s.sftp()
	for _, name := range []string{"a", "b"} {
		write(t, s.path(name), name)
	}
	if err := os.Mkdir(s.path("dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s went well", what)
		}
	}
	refused("renaming over a file", c.Rename(s.path("a"), s.path("b")))
	refused("removing a directory as a file", raw(t, s, fxRemove, str(s.path("dir"))).err())
	refused("removing a file as a directory", raw(t, s, fxRmdir, str(s.path("a"))).err())
	if text, err := os.ReadFile(s.path("b")); err != nil || string(text) != "b" {
		t.Errorf("%q %v", text, err)
	}
	if err := c.PosixRename(s.path("a"), s.path("b")); err != nil {
		t.Error(err)
	}
	if err := c.Rename(s.path("b"), s.path("c")); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(s.path("c")); err != nil || string(text) != "a" {
		t.Errorf("%q %v", text, err)
	}
	if err := c.Symlink("not/there", s.path("link")); err != nil {
		t.Error(err)
	}
	if to, err := c.ReadLink(s.path("link")); err != nil || to != "not/there" {
		t.Errorf("%q %v", to, err)
	}
	if err := c.Link(s.path("c"), s.path("hard")); err != nil {
		t.Error(err)
	}
	if a, b := stat(t, s.path("c")), stat(t, s.path("hard")); a.Ino != b.Ino {
		t.Error("they are two files")
	}
	if _, err := c.Stat(s.path("nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	// A directory's mode is the client's, and .. of a link is the real one.
	if got := raw(t, s, fxMkdir, str(s.path("made")), []byte{0, 0, 0, 4, 0, 0, 0o1, 0o300}); got.err() != nil {
		t.Error(got.err())
	}
	if got := stat(t, s.path("made")).Mode & 0o777; got != 0o700&^umask() {
		t.Errorf("mode %o", got)
	}
	if err := os.Symlink("dir", s.path("to-dir")); err != nil {
		t.Fatal(err)
	}
	if got, err := c.RealPath(s.path("to-dir/new")); err != nil || got != s.path("dir/new") {
		t.Errorf("%q %v", got, err)
	}
}

func umask() uint32 { old := syscall.Umask(0); syscall.Umask(old); return uint32(old) }

func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return &st
}

func TestOpenSSHsExtensions(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	c := s.sftp()
	for name, version := range map[string]string{
		"posix-rename@openssh.com": "1", "statvfs@openssh.com": "2", "hardlink@openssh.com": "1", "fsync@openssh.com": "1",
		"limits@openssh.com": "1", "lsetstat@openssh.com": "1", "expand-path@openssh.com": "1", "copy-data": "1",
	} {
		if got, ok := c.HasExtension(name); !ok || got != version {
			t.Errorf("%s: %q", name, got)
		}
	}
	f, err := c.Create(s.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("written")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.path("f"), s.path("g")); err != nil { // what is open stays what it is
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Error("fsync:", err)
	}
	_ = f.Close()
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		t.Fatal(err)
	}
	if got, err := c.StatVFS(s.dir); err != nil || got.Blocks != st.Blocks || got.Bsize == 0 {
		t.Errorf("%+v %v", got, err)
	}
	limits := raw(t, s, fxExtended, str("limits@openssh.com"))
	if len(limits) != 9+32 || binary.BigEndian.Uint64(limits[9:]) != 256<<10 {
		t.Errorf("limits: %x", limits)
	}
	home := raw(t, s, fxExtended, str("expand-path@openssh.com"), str("~/x/../y"))
	if !bytes.Contains(home, []byte("/y")) {
		t.Errorf("expand-path: %q", home)
	}
	if err := raw(t, s, fxExtended, str("expand-path@openssh.com"), str("~other")).err(); err == nil {
		t.Error("another's home")
	}
	if err := os.Symlink("g", s.path("link")); err != nil {
		t.Fatal(err)
	}
	if err := raw(t, s, fxExtended, str("lsetstat@openssh.com"), str(s.path("link")), []byte{0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 10}).err(); err != nil {
		t.Error("lsetstat:", err)
	}
	if got := stat(t, s.path("link")).Mtim.Sec; got != 10 {
		t.Errorf("the link is of %d", got)
	}
	if err := raw(t, s, fxExtended, str("no-such@example.com")).err(); err == nil || !strings.Contains(err.Error(), "8") {
		t.Error(err)
	}
	// OpenSSH's own client copies there by copy-data.
	write(t, s.path("big"), strings.Repeat("0123456789", 100_000))
	if got := s.run(strings.NewReader("cp big copy\n"), "sftp", "-F", "CONFIG", "-b", "-", "box:"+s.dir); got.code != 0 {
		t.Errorf("%+v", got)
	}
	if a, b := stat(t, s.path("big")), stat(t, s.path("copy")); a.Size != b.Size {
		t.Errorf("%d bytes of %d", b.Size, a.Size)
	}
}

func TestLargeAndSparseFiles(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	c := s.sftp()
	f, err := c.OpenFile(s.path("sparse"), os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const at = 5 << 30
	if _, err := f.WriteAt([]byte("far"), at); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if n, err := f.ReadAt(b, at-2); err != nil || string(b[:n]) != "\x00\x00far" {
		t.Errorf("%q %v", b[:n], err)
	}
	st := stat(t, s.path("sparse"))
	if info, err := f.Stat(); err != nil || info.Size() != at+3 || st.Size != at+3 || st.Blocks > 64 {
		t.Errorf("%v, %d bytes in %d blocks, %v", info, st.Size, st.Blocks, err)
	}
	// A download that broke off goes on.
	data := random(t, 3<<20)
	write(t, s.path("whole"), string(data))
	write(t, s.path("part"), string(data[:1<<20]))
	if got := s.run(strings.NewReader("reget whole "+s.path("part")+"\n"), "sftp", "-F", "CONFIG", "-b", "-", "box:"+s.dir); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	if got, err := os.ReadFile(s.path("part")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	write(t, s.path("up"), string(data[:1<<20]))
	if got := s.run(strings.NewReader("reput "+s.path("whole")+" up\n"), "sftp", "-F", "CONFIG", "-b", "-", "box:"+s.dir); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	if got, err := os.ReadFile(s.path("up")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestAFullDiskIsSaid(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	f, err := s.sftp().OpenFile("/dev/full", os.O_WRONLY)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Error(err)
	}
	_ = f.Close()
	write(t, s.path("x"), "x")
	if got := s.run(strings.NewReader("put "+s.path("x")+" /dev/full\n"), "sftp", "-F", "CONFIG", "-b", "-", "box"); got.code == 0 {
		t.Errorf("%+v", got)
	}
}

// The requests that tests send by hand.
const (
	fxOpen     = 3
	fxClose    = 4
	fxRead     = 5
	fxWrite    = 6
	fxFstat    = 8
	fxFsetstat = 10
	fxOpendir  = 11
	fxRemove   = 13
	fxMkdir    = 14
	fxRmdir    = 15
	fxExtended = 200
)

func str(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }

// An answer is a packet.
type answer []byte

// err is its status, when it is one that tells of a failure.
func (a answer) err() error {
	if len(a) < 13 || a[4] != 101 || binary.BigEndian.Uint32(a[9:]) == 0 {
		return nil
	}
	return fmt.Errorf("status %d", binary.BigEndian.Uint32(a[9:]))
}

// raw sends one request and returns the answer.
func raw(t *testing.T, s *served, kind byte, parts ...[]byte) answer {
	t.Helper()
	send, receive := s.packets()
	send(append([]byte{kind, 0, 0, 0, 7}, bytes.Join(parts, nil)...))
	return receive()
}

// packets sends requests by hand, any number of them at once, and receives answers.
func (s *served) packets() (send func(...[]byte), receive func() answer) {
	t := s.t
	t.Helper()
	ses := s.session(s.dial())
	in, err := ses.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := ses.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ses.RequestSubsystem("sftp"); err != nil {
		t.Fatal(err)
	}
	send = func(all ...[]byte) {
		var b []byte
		for _, p := range all {
			b = append(b, str(string(p))...)
		}
		if _, err := in.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	receive = func() answer {
		head := make([]byte, 4)
		if _, err := io.ReadFull(out, head); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, binary.BigEndian.Uint32(head))
		if _, err := io.ReadFull(out, p); err != nil {
			t.Fatal(err)
		}
		return append(head, p...)
	}
	send([]byte{1, 0, 0, 0, 3})
	receive()
	return send, receive
}

// A client that does not wait for answers has its requests served in their order.
func TestNoRequestOvertakesAnother(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	send, receive := s.packets()
	request := func(kind byte, parts ...[]byte) []byte {
		return append([]byte{kind, 0, 0, 0, 7}, bytes.Join(parts, nil)...)
	}
	word := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	send(request(fxOpen, str(s.path("f")), word(0x1a), word(0))) // to be written, made and truncated
	handle := []byte(receive()[9:])
	const rounds = 300
	for i := range rounds {
		big, last := str(strings.Repeat("x", 100_000)), str(fmt.Sprintf("last %03d", i))
		send(request(fxWrite, handle, word(0), word(0), big),
			request(fxFsetstat, handle, word(1), word(0), word(4)), // truncated to four bytes
			request(fxWrite, handle, word(0), word(0), str("first")),
			request(fxWrite, handle, word(0), word(0), last),
			request(fxFsetstat, handle, word(8), word(uint32(1000+i)), word(uint32(1000+i)))) // times
		for range 5 {
			if err := receive().err(); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(s.path("f"))
		if want := fmt.Sprintf("last %03d", i); err != nil || string(text) != want || stat(t, s.path("f")).Mtim.Sec != int64(1000+i) {
			t.Fatalf("round %d: %.20q of %d bytes, of %d, %v", i, text, len(text), stat(t, s.path("f")).Mtim.Sec, err)
		}
	}
}

func FuzzSFTP(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 3}, []byte{16, 0, 0, 0, 1, 0, 0, 0, 1, '.'})
	f.Add([]byte{1, 0, 0, 0, 3}, append([]byte{200, 0, 0, 0, 1}, append(str("copy-data"), make([]byte, 40)...)...))
	f.Add([]byte{200, 0, 0, 0, 1}, append([]byte{200, 0, 0, 0, 1}, append(str("fsync@openssh.com"), str("1")...)...))
	f.Add([]byte{}, []byte{101})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) > 1<<16 || len(b) > 1<<16 {
			return
		}
		for _, p := range [][]byte{a, b} { // nothing that would change this machine
			if len(p) > 0 && bytes.IndexByte([]byte{3, 6, 9, 10, 13, 14, 15, 18, 20, 200}, p[0]) >= 0 && !bytes.Contains(p, []byte("copy-data")) && !bytes.Contains(p, []byte("fsync")) {
				return
			}
		}
		c := &pipe{in: bytes.NewReader(append(append(str(string(a)), str(string(b))...), 0, 0, 0, 5))}
		_ = sshd.ServeSFTP(c) // it ends, whatever it is sent
	})
}

// A pipe is a client that sends what it sends, and takes all.
type pipe struct {
	in io.Reader
}

func (p *pipe) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *pipe) Write(b []byte) (int, error) { return len(b), nil }
func (p *pipe) Close() error                { return nil }

// What may be done with a handle, and with too many.
func TestOpenFiles(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	send, receive := s.packets()
	ask := func(kind byte, parts ...[]byte) answer {
		t.Helper()
		send(append([]byte{kind, 0, 0, 0, 7}, bytes.Join(parts, nil)...))
		a := receive()
		if id := binary.BigEndian.Uint32(a[5:]); id != 7 {
			t.Fatalf("the answer to another request, %d", id)
		}
		return a
	}
	word := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	fails := func(what string, a answer, code string) {
		t.Helper()
		if err := a.err(); err == nil || err.Error() != "status "+code {
			t.Errorf("%s: %v, not %s", what, err, code)
		}
	}
	write(t, s.path("log"), "first\n")
	const reads, appends, makes = 1, 2 | 4, 2 | 8 | 32
	log := []byte(ask(fxOpen, str(s.path("log")), word(appends), word(0))[9:])
	if err := ask(fxWrite, log, word(0), word(0), str("second\n")).err(); err != nil { // at 0, as a client may say
		t.Error(err)
	}
	if text, err := os.ReadFile(s.path("log")); err != nil || string(text) != "first\nsecond\n" {
		t.Errorf("%q %v", text, err)
	}
	fails("reads what is open to be written", ask(fxRead, log, word(0), word(0), word(10)), "4")
	if a := ask(fxFstat, log); a[4] != 105 || binary.BigEndian.Uint64(a[13:]) != 13 {
		t.Errorf("fstat: %x", []byte(a))
	}
	file := []byte(ask(fxOpen, str(s.path("log")), word(reads), word(0))[9:])
	if a := ask(fxRead, file, word(0), word(6), word(1<<31)); a[4] != 103 || string(a[13:]) != "second\n" {
		t.Errorf("read: %q", []byte(a))
	}
	fails("reads at the end", ask(fxRead, file, word(0), word(13), word(1)), "1")
	fails("reads before the beginning", ask(fxRead, file, word(1<<31), word(0), word(1)), "4")
	fails("writes what is open to be read", ask(fxWrite, file, word(0), word(0), str("x")), "4")
	fails("makes what is there", ask(fxOpen, str(s.path("log")), word(makes), word(0)), "4")
	fails("opens what is not there", ask(fxOpen, str(s.path("none")), word(reads), word(0)), "2")
	fails("opens for nothing", ask(fxOpen, str(s.path("log")), word(0), word(0)), "4")
	fails("a write that ends early", ask(fxWrite, file, word(0), word(0), word(99)), "5")
	for _, handle := range []string{"", "0", "f", "f99", "\x00"} {
		fails("closes "+handle, ask(fxClose, str(handle)), "4")
	}
	dir := []byte(ask(fxOpendir, str(s.dir))[9:])
	fails("reads a directory as a file", ask(fxRead, dir, word(0), word(0), word(1)), "4")
	for _, handle := range [][]byte{dir, log, file} {
		if err := ask(fxClose, handle).err(); err != nil {
			t.Error(err)
		}
		fails("closes twice", ask(fxClose, handle), "4")
	}
	for range 4096 {
		if err := ask(fxOpen, str(s.path("log")), word(reads), word(0)).err(); err != nil {
			t.Fatal(err)
		}
	}
	fails("opens one more than may be", ask(fxOpen, str(s.path("log")), word(reads), word(0)), "4")
}
