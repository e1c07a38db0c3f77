package sshd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/sshd"
)

func TestACommandIsRunExactly(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	for name, tt := range map[string]struct {
		stdin   string
		command string
		want    result
	}{
		"both outputs and the exit status": {command: `printf 'out\n'; printf 'err\n' >&2; exit 37`, want: result{"out\n", "err\n", 37}},
		"no output":                        {command: "true"},
		"the last exit status":             {command: "exit 255", want: result{code: 255}},
		"standard input to its end":        {stdin: "a\nb", command: "tr a-z A-Z", want: result{out: "A\nB"}},
		"a command with quotes":            {command: `echo "$HOME" 'a  b'`, want: result{out: s.dir + " a  b\n"}},
		"a name that is not there":         {command: "no-such-program 2>/dev/null", want: result{code: 127}},
		"input that it does not read":      {stdin: strings.Repeat("x", 8<<20), command: "echo done", want: result{out: "done\n"}},
		"its home as directory":            {command: "pwd", want: result{out: s.dir + "\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := s.ssh(strings.NewReader(tt.stdin), "box", tt.command); got != tt.want {
				t.Errorf("got %.500q", fmt.Sprint(got))
			}
		})
	}
}

func TestBytesStayAsTheyAre(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	data := random(t, 8<<20)
	if got := s.ssh(bytes.NewReader(data), "box", "cat"); got.out != string(data) || got.code != 0 {
		t.Errorf("%d bytes came back as %d, exit code %d, %s", len(data), len(got.out), got.code, got.errs)
	}
	// With a terminal as well, in raw mode; line ends are the terminal's affair.
	ses := s.session(s.dial())
	if err := ses.RequestPty("dumb", 24, 80, gossh.TerminalModes{gossh.OPOST: 0, gossh.ECHO: 0}); err != nil {
		t.Fatal(err)
	}
	out, err := ses.Output(`printf 'a\nb\r\n\0\377'`)
	if err != nil || string(out) != "a\nb\r\n\x00\xff" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestAnEndBySignalIsTold(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	client := s.dial()
	for _, signal := range []string{"TERM", "KILL", "INT"} {
		var exit *gossh.ExitError
		if err := s.session(client).Run("kill -" + signal + " $$"); !errors.As(err, &exit) || exit.Signal() != signal {
			t.Errorf("%s: %v", signal, err)
		}
	}
	// A client's signal reaches what runs, and its children.
	ses := s.session(client)
	out, err := ses.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ses.Start(`trap 'echo usr1; exit 4' USR1; echo ready; while :; do sleep 0.1; done`); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 6)
	if _, err := io.ReadFull(out, head); err != nil || string(head) != "ready\n" {
		t.Fatalf("%q %v", head, err)
	}
	if err := ses.Signal(gossh.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out)
	var exit *gossh.ExitError
	if err := ses.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 4 || string(rest) != "usr1\n" {
		t.Errorf("%v, %q", err, rest)
	}
}

func TestTheEnvironmentOfACommand(t *testing.T) {
	t.Parallel()
	s := serve(t, `environment="FROM_KEY=yes" %s`, func(c *sshd.Config) { c.Env = append(c.Env, "FROM_CONFIG=1") })
	ses := s.session(s.dial())
	for name, ok := range map[string]bool{"LANG": true, "LC_ALL": true, "GIT_PROTOCOL": true, "LD_PRELOAD": false, "PATH": false, "BASH_ENV": false} {
		if err := ses.Setenv(name, "C"); (err == nil) != ok {
			t.Errorf("%s is taken: %v", name, err == nil)
		}
	}
	out, err := ses.Output("env")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	for _, want := range []string{"LANG=C", "LC_ALL=C", "GIT_PROTOCOL=C", "FROM_KEY=yes", "FROM_CONFIG=1", "HOME=" + s.dir, "USER=" + sshd.Me().Name, "LOGNAME=" + sshd.Me().Name, "SHELL=/bin/sh", "PATH=" + os.Getenv("PATH")} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if !strings.Contains(string(out), "SSH_CONNECTION=127.0.0.1 ") || strings.Contains(string(out), "LD_PRELOAD") || strings.Contains(string(out), "TERM=") {
		t.Errorf("%s", out)
	}
}

func TestATerminal(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	ses := s.session(s.dial())
	modes := gossh.TerminalModes{gossh.ECHO: 0, gossh.ICANON: 1, gossh.VINTR: 7, gossh.VEOF: 255, gossh.IXON: 0, 42: 1, gossh.CS8: 1, 128: 38400, 129: 38400}
	if err := ses.RequestPty("xterm-256color", 33, 101, modes); err != nil {
		t.Fatal(err)
	}
	in, err := ses.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := ses.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ses.Start(`trap 'stty size; exit 5' WINCH; echo $TERM $SSH_TTY; stty size; stty -a; echo ready; while :; do sleep 0.1; done`); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(readTo(t, out, "ready\r\n"), "\r\n", " ")
	for _, want := range []string{"xterm-256color /dev/pts/", " 33 101 ", "intr = ^G", "eof = <undef>", " -echo ", " icanon ", " -ixon ", " iutf8 ", " cs8 "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if err := ses.WindowChange(50, 200); err != nil {
		t.Fatal(err)
	}
	text = readTo(t, out, "\n")
	if text != "50 200\r\n" {
		t.Errorf("%q", text)
	}
	_ = in.Close()
	var exit *gossh.ExitError
	if err := ses.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 5 {
		t.Error(err)
	}
}

func readTo(t *testing.T, r io.Reader, end string) string {
	t.Helper()
	var b strings.Builder
	c := make([]byte, 1)
	for !strings.HasSuffix(b.String(), end) {
		if _, err := r.Read(c); err != nil {
			t.Fatalf("%v after %q", err, b.String())
		}
		b.Write(c)
	}
	return b.String()
}

func TestManySessionsOfOneConnection(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	client := s.dial()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			ses, err := client.NewSession()
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = ses.Close() }()
			if out, err := ses.Output(fmt.Sprintf("sleep 0.1; echo %d", i)); err != nil || string(out) != fmt.Sprintln(i) {
				t.Errorf("%q %v", out, err)
			}
		})
	}
	all.Wait()
}

func TestWhatADroppedSessionLeavesIsHungUp(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	for name, args := range map[string][]string{"with a terminal": {"-tt"}, "without": {"-T"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			told := filepath.Join(t.TempDir(), "told")
			script := fmt.Sprintf(`trap 'echo hup >%s; exit' HUP; echo ready; while :; do sleep 0.1; done`, told)
			cmd := exec.Command("ssh", append(append([]string{"-F", s.path("config")}, args...), "box", script)...)
			cmd.Stdin = strings.NewReader("") // its end is no reason to hang up
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			readTo(t, out, "ready")
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			until(t, "the hang-up is told", func() bool { text, _ := os.ReadFile(told); return string(text) == "hup\n" })
		})
	}
}

func TestWhatIsRefusedInASession(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	client := s.dial()
	ses := s.session(client)
	for kind, payload := range map[string][]byte{
		"x11-req":       gossh.Marshal(struct{ A, B bool }{}),
		"subsystem":     gossh.Marshal(struct{ Name string }{"netconf"}),
		"pty-req":       {1},
		"window-change": gossh.Marshal(struct{ A, B, C, D uint32 }{1, 2, 3, 4}), // it has no terminal
		"signal":        gossh.Marshal(struct{ Name string }{"TERM"}),           // nothing runs
		"env":           {0, 0, 0, 9},
		"no-such":       nil,
	} {
		if ok, err := ses.SendRequest(kind, true, payload); err != nil || ok {
			t.Errorf("%s: %v %v", kind, ok, err)
		}
	}
	// Nothing of that harms it, and it runs one thing only.
	if out, err := ses.Output("echo well"); err != nil || string(out) != "well\n" {
		t.Errorf("%q %v", out, err)
	}
	if got := s.ssh(nil, "-X", "box", "echo $DISPLAY"); got.out != "\n" || got.code != 0 {
		t.Errorf("X11: %+v", got)
	}
	for name, extra := range map[string][]byte{"a channel of another type": nil} {
		if ch, _, err := client.OpenChannel("no-such", extra); err == nil {
			t.Errorf("%s was opened: %v", name, ch)
		}
	}
}

// A real terminal program in a real terminal, driven as a person would.
func TestVimAndTmuxInATerminal(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	file := s.path("text")
	script := fmt.Sprintf(`
set timeout 30
set stty_init "rows 24 columns 80"
spawn ssh -F %s -tt box vim.tiny -u NONE %s
expect "~"
send "ihello from vim\033:wq\r"
expect eof
spawn ssh -F %[1]s -tt box "tmux -f /dev/null -L devaipod-test-%[3]s new-session 'stty size; read x; echo got-\$x; sleep 1'"
expect -re {[0-9]+ [0-9]+}
send "keys\r"
expect "got-keys" { puts "TMUX-OK" }
expect eof
`, s.path("config"), file, s.port)
	got := s.run(strings.NewReader(script), "env", "TERM=xterm", "expect", "-f", "-")
	if text, err := os.ReadFile(file); err != nil || string(text) != "hello from vim\n" {
		t.Errorf("%q %v", text, err)
	}
	if !strings.Contains(got.out, "TMUX-OK") {
		t.Errorf("%s%s", got.out, got.errs)
	}
}

func TestAMachineWithoutAShell(t *testing.T) {
	t.Parallel()
	s := serve(t, "", func(c *sshd.Config) { c.User.Shell = "" })
	if got := s.ssh(nil, "box", "true"); got.code != 127 || !strings.Contains(got.errs, "there is no shell here") {
		t.Errorf("%+v", got)
	}
	if got := s.run(strings.NewReader("pwd\n"), "sftp", "-F", "CONFIG", "-b", "-", "box"); got.code != 0 || !strings.Contains(got.out, "Remote working directory: /") {
		t.Errorf("%+v", got)
	}
}
