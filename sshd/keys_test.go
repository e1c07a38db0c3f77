package sshd_test

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/sshd"
)

func TestOnlyTheKeysOfTheFileAreLetIn(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	stranger, _ := newKey(t, s.path("stranger"))
	if _, err := s.login(stranger); err == nil {
		t.Fatal("a stranger is in")
	}
	for name, method := range map[string]gossh.AuthMethod{
		"a password": gossh.Password(""),
		"questions":  gossh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return nil, nil }),
	} {
		if _, err := gossh.Dial("tcp", "127.0.0.1:"+s.port, &gossh.ClientConfig{User: "root", Auth: []gossh.AuthMethod{method}, HostKeyCallback: gossh.InsecureIgnoreHostKey()}); err == nil { //nolint:gosec // a server of this test's
			t.Errorf("%s let somebody in", name)
		}
	}
	if got := s.ssh(nil, "-o", "PubkeyAuthentication=no", "box", "true"); got.code != 255 || !strings.Contains(got.errs, "Permission denied (publickey)") {
		t.Errorf("%+v", got)
	}
	// The file is read anew at each login.
	s = serve(t, "")
	stranger, line := newKey(t, s.path("stranger"))
	write(t, s.path("authorized_keys"), line+"\n")
	if _, err := s.login(s.key); err == nil {
		t.Error("a key that was taken out is let in")
	}
	c, err := s.login(stranger)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := os.Chmod(s.path("authorized_keys"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := s.login(stranger); err == nil || !strings.Contains(s.log.String(), "may be written by others") {
		t.Errorf("a file that others may write: %v", err)
	}
}

// A client may show a key that it does not have: what it may do is up to the one that
// it has.
func TestAKeyThatIsOnlyShownGivesNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	free, freeLine := newKey(t, s.path("free"))
	write(t, s.path("authorized_keys"), freeLine+"\ncommand=\"echo forced\" "+s.pub+"\n")
	if err := os.Remove(s.path("free")); err != nil { // which leaves what is public of it
		t.Fatal(err)
	}
	got := s.ssh(nil, "-v", "-o", "IdentityFile="+s.path("free.pub"), "box", "echo free")
	if got.out != "forced\n" || !strings.Contains(got.errs, "Server accepts key: "+s.path("free.pub")) {
		t.Errorf("%+v", got)
	}
	// Nor does a signature that is wrong.
	if _, err := s.login(forged{free}); err == nil {
		t.Error("a forged signature lets in")
	}
}

// forged is a key whose signatures are no good.
type forged struct{ gossh.Signer }

func (f forged) Sign(rand io.Reader, data []byte) (*gossh.Signature, error) {
	return f.Signer.Sign(rand, append(data, 'x'))
}

func TestWhatALineOfTheKeysSays(t *testing.T) {
	t.Parallel()
	past, future := time.Now().Add(-time.Hour).Format("200601021504"), time.Now().Add(time.Hour).Format("200601021504")
	for name, tt := range map[string]struct {
		line string
		args []string
		want string // of the output; "" for no login
	}{
		"nothing":                     {"%s", []string{"box", "echo in"}, "in\n"},
		"a command":                   {`command="echo \"$SSH_ORIGINAL_COMMAND\"" %s`, []string{"box", "asked for"}, "asked for\n"},
		"no terminal":                 {"no-pty %s", []string{"-tt", "box", "tty"}, ""},
		"restrict":                    {"restrict %s", []string{"-A", "box", "echo -$SSH_AUTH_SOCK-"}, "--\n"},
		"restrict, and a terminal":    {"restrict,pty %s", []string{"-tt", "box", "tty >/dev/null && echo yes"}, "yes\r\n"},
		"an address that is ours":     {`from="10.0.0.0/8,127.0.0.*" %s`, []string{"box", "echo in"}, "in\n"},
		"an address that is not":      {`from="10.0.0.0/8" %s`, []string{"box", "echo in"}, ""},
		"any but ours":                {`from="*,!127.0.0.1" %s`, []string{"box", "echo in"}, ""},
		"a time to come":              {`expiry-time="` + future + `" %s`, []string{"box", "echo in"}, "in\n"},
		"a time that is over":         {`expiry-time="` + past + `" %s`, []string{"box", "echo in"}, ""},
		"a time that is none":         {`expiry-time="soon" %s`, []string{"box", "echo in"}, ""},
		"an option that is not known": {`tunnel="1" %s`, []string{"box", "echo in"}, ""},
		"nonsense, and then the key":  {"nonsense\n\n# a comment\n%s", []string{"box", "echo in"}, "in\n"},
		"the key as an authority's":   {"cert-authority %s", []string{"box", "echo in"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := serve(t, tt.line).ssh(nil, tt.args...)
			if got.out != tt.want || (got.code == 255) != (tt.want == "") {
				t.Errorf("%+v", got)
			}
		})
	}
	s := serve(t, "restrict %s")
	client := s.dial()
	port, socket := hello(t)
	if _, err := client.Dial("tcp", "127.0.0.1:"+port); err == nil || !strings.Contains(err.Error(), "may not forward") {
		t.Error(err)
	}
	if _, err := client.Dial("unix", socket); err == nil {
		t.Error("a socket is forwarded")
	}
	if _, err := client.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("a port is listened on")
	}
	if _, err := client.ListenUnix(s.path("x")); err == nil {
		t.Error("a socket is listened on")
	}
}

func TestCertificatesOfAnAuthority(t *testing.T) {
	t.Parallel()
	me := sshd.Me().Name
	for name, tt := range map[string]struct {
		line string
		sign []string
		want string
	}{
		"for the user":          {"cert-authority CA", []string{"-n", me}, "in\n"},
		"for another":           {"cert-authority CA", []string{"-n", "nobody"}, ""},
		"for nobody":            {"cert-authority CA", nil, ""},
		"of the line's name":    {`cert-authority,principals="ops,dev" CA`, []string{"-n", "dev"}, "in\n"},
		"of another name":       {`cert-authority,principals="ops" CA`, []string{"-n", me}, ""},
		"that is over":          {"cert-authority CA", []string{"-n", me, "-V", "-2h:-1h"}, ""},
		"of a host":             {"cert-authority CA", []string{"-h", "-n", me}, ""},
		"with a command":        {"cert-authority CA", []string{"-n", me, "-O", "force-command=echo forced"}, "forced\n"},
		"from elsewhere":        {"cert-authority CA", []string{"-n", me, "-O", "source-address=10.0.0.0/8"}, ""},
		"of a key that is none": {"CA", []string{"-n", me}, ""},
		"with a new condition":  {"cert-authority CA", []string{"-n", me, "-O", "critical:verify-moon"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, "# %s")
			_, ca := newKey(t, s.path("ca"))
			write(t, s.path("authorized_keys"), strings.ReplaceAll(tt.line, "CA", ca)+"\n")
			if got := s.run(nil, append(append([]string{"ssh-keygen", "-q", "-s", s.path("ca"), "-I", "id"}, tt.sign...), s.path("key.pub"))...); got.code != 0 {
				t.Fatal(got.errs)
			}
			if got := s.ssh(nil, "-o", "CertificateFile="+s.path("key-cert.pub"), "box", "echo in"); got.out != tt.want {
				t.Errorf("%+v\n%s", got, s.log)
			}
		})
	}
}

func TestWhoFailsOftenHasToWait(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	stranger, _ := newKey(t, s.path("stranger"))
	until(t, "a stranger is turned away", func() bool {
		if _, err := s.login(stranger); err == nil {
			t.Fatal("a stranger is in")
		}
		return strings.Contains(s.log.String(), "a connection is turned away")
	})
	if n := strings.Count(s.log.String(), "a login is refused"); n < 5 {
		t.Errorf("after %d tries", n)
	}
	until(t, "the wait is over", func() bool {
		c, err := s.login(s.key)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	if c, err := s.login(s.key); err != nil {
		t.Error("a login clears the failures:", err)
	} else {
		_ = c.Close()
	}
}

func TestTheHostKeyStays(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/key"
	first, err := sshd.HostKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := sshd.HostKey(path)
	if err != nil || string(first.PublicKey().Marshal()) != string(again.PublicKey().Marshal()) {
		t.Errorf("another key: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := sshd.HostKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Error(err)
	}
	write(t, path, "x")
	_ = os.Chmod(path, 0o600)
	if _, err := sshd.HostKey(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	if _, err := sshd.HostKey(t.TempDir() + "/no/key"); err == nil {
		t.Error("made a key in a directory that is not there")
	}
}
