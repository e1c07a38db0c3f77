package sshd_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// What editors do to a machine by OpenSSH's client, replayed: their commands, streams and
// forwards. No editor runs here, and what they install there is played by a few lines of
// shell and Python.

// A running is a client that a test talks to.
type running struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader

	errs *record
}

func (s *served) start(args ...string) *running {
	s.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	errs := &record{}
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("%v: %s", args, errs.String())
		}
	})
	return &running{cmd, in, bufio.NewReader(out), errs}
}

// script is what VS Code's Remote-SSH sends to bash: it finds a server that runs, or
// starts one that outlives it, and tells of it between two marks.
const vscodeScript = `
echo "0e21d0e5a3e0: running"
cd "$HOME"; echo $$ >bash
if ! { [ -f .pid ] && kill -0 "$(cat .pid)" 2>/dev/null; }; then
  rm -f log
  python3 -u "$HOME/code-server" WHERE &>log </dev/null &
  echo $! >.pid
fi
until grep -q 'Extension host agent listening on' log; do sleep 0.05; done
echo "0e21d0e5a3e0: start"
echo "exitCode==0=="
echo "listeningOn==$(sed -n 's/Extension host agent listening on //p' log)=="
echo "osReleaseId==debian=="
echo "platform==linux=="
echo "0e21d0e5a3e0: end"
`

// codeServer stands for VS Code's server: it serves its process's number by HTTP.
const codeServer = `
import http.server, os, socketserver, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d" % os.getpid())
    def address_string(self): return "client"

if sys.argv[1] == "port":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print("Extension host agent listening on", server.server_port)
else:
    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): pass
    server = Server(sys.argv[1], Handler)
    print("Extension host agent listening on", sys.argv[1])
server.serve_forever()
`

// bootstrap sends the script and returns where the server listens.
func (r *running) bootstrap(t *testing.T, where string) string {
	t.Helper()
	if _, err := io.WriteString(r.in, strings.ReplaceAll(vscodeScript, "WHERE", where)); err != nil {
		t.Fatal(err)
	}
	for started, at := false, ""; ; {
		line, err := r.out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "listeningOn=="); ok {
			at = strings.TrimSuffix(rest, "==")
		}
		started = started || line == "0e21d0e5a3e0: start"
		if line == "0e21d0e5a3e0: end" && started {
			return at
		}
	}
}

// VS Code's Remote-SSH runs "ssh -T -D PORT HOST bash", gives it a script on its standard
// input that is left open, waits for the marks, and reaches its server, which stays behind,
// through the dynamic forward; or through "-L PORT:SOCKET" of a second one where it listens
// on a socket. When the connection breaks it comes back and looks for the server's pid.
// From its logs: https://github.com/microsoft/vscode-remote-release/issues/10864 (-D, the
// pid), /10017 (the marks), /8428 (the socket), /6798 (the server outlives the connection);
// and from https://github.com/jeanp413/open-remote-ssh, src/scripts/server-setup.sh, which
// goes the same way.
func TestTheWayOfVSCode(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	write(t, s.path("code-server"), codeServer)
	t.Cleanup(func() {
		_ = exec.Command("sh", "-c", "kill $(cat "+s.path(".pid")+")").Run() // the server, if there is one
	})
	dynamic := freePort(t)
	first := s.start("ssh", "-F", s.path("config"), "-T", "-D", dynamic, "-o", "ConnectTimeout=15", "box", "bash")
	at := first.bootstrap(t, "port")
	proxy := []string{"--proxy", "socks5://127.0.0.1:" + dynamic, "http://127.0.0.1:" + at}
	pid := s.curl(proxy...)
	text, err := os.ReadFile(s.path(".pid"))
	if err != nil || pid != strings.TrimSpace(string(text)) {
		t.Fatalf("%q, and not %q, answers; %v", pid, text, err)
	}
	// The connection breaks: what runs in bash's background is left alone, as by OpenSSH.
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	bash, err := os.ReadFile(s.path("bash"))
	if err != nil {
		t.Fatal(err)
	}
	s.gone(bash)
	second := s.start("ssh", "-F", s.path("config"), "-T", "-D", dynamic, "-o", "ConnectTimeout=15", "box", "bash")
	if again := second.bootstrap(t, "port"); again != at {
		t.Errorf("it listens on %s now, and not on %s", again, at)
	}
	if now := s.curl(proxy...); now != pid {
		t.Errorf("%q, and not %q, answers", now, pid)
	}
	// The end of standard input is the end of bash and of the connection.
	_ = second.in.Close()
	if err := second.Wait(); err != nil {
		t.Error(err)
	}
}

// The same where the server listens on a socket.
func TestTheWayOfVSCodeWithASocket(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	write(t, s.path("code-server"), codeServer)
	t.Cleanup(func() {
		_ = exec.Command("sh", "-c", "kill $(cat "+s.path(".pid")+")").Run() // the server, if there is one
	})
	at := s.start("ssh", "-F", s.path("config"), "-T", "box", "bash").bootstrap(t, s.path("sock"))
	local := freePort(t)
	// open-remote-ssh sends the script in the command itself, for shells that are not bash.
	second := s.start("ssh", "-F", s.path("config"), "-T", "-L", "127.0.0.1:"+local+":"+at, "box", "bash")
	if again := second.bootstrap(t, s.path("sock")); again != s.path("sock") {
		t.Errorf("it listens on %q", again)
	}
	if got := s.curl("http://127.0.0.1:" + local); got == "" || strings.ContainsFunc(got, func(r rune) bool { return r < '0' || r > '9' }) {
		t.Errorf("%q", got)
	}
	// https://github.com/jeanp413/open-remote-ssh, src/serverSetup.ts, for any login shell.
	if got := s.ssh(nil, "box", "echo ZWNobyBmcm9tLWEtbG9naW4tc2hlbGwK | base64 -d | bash -l"); got.out != "from-a-login-shell\n" {
		t.Errorf("%+v", got)
	}
	// src/authResolver.ts there: the agent's socket, as long as this channel is open.
	agent := s.start("ssh", "-F", s.path("config"), "-T", "box", `echo "$SSH_AUTH_SOCK"; exec cat`)
	if line, err := agent.out.ReadString('\n'); err != nil || line != "\n" { // there is no agent here
		t.Errorf("%q %v", line, err)
	}
}

// zedServer stands for zed-remote-server: a proxy of it takes and gives messages, each
// with its length before it, and logs lines of JSON.
const zedServer = `#!/bin/sh
case $1 in
version) echo 1.2.3 ;;
proxy)
  echo '{"level":3,"message":"starting proxy '"$3 $RUST_LOG"'"}' >&2
  echo $$ >"$HOME/proxy"
  exec cat
  ;;
esac
`

// Zed opens one connection with a control socket (-N, ControlMaster=yes) and does all by
// clients of that: it asks for shell and platform, uploads its server by sftp, unpacks it,
// and talks to it by the stdio of "ssh -T"; terminals are "ssh -q -t", ports "ssh -N -L".
// From https://github.com/zed-industries/zed, crates/remote/src/transport/ssh.rs at
// 00f12a12e405110e63e665dfb03bd93912519f08, and crates/remote/src/protocol.rs.
func TestTheWayOfZed(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	server := own(s.dir) // sftp begins in its directory, which is the home
	server.Env = append(server.Env, "SSHD_TEST_ALIVE=2s")
	s.process(server)
	control := s.path("ssh.sock")
	master := s.start("ssh", "-F", s.path("config"), "-N", "-o", "ControlPersist=no", "-o", "ControlMaster=yes", "-o", "ControlPath="+control, "box")
	if rest, err := io.ReadAll(master.out); err != nil || len(rest) > 0 { // its end says that it is connected
		t.Fatalf("%q %v", rest, err)
	}
	by := func(program string, args ...string) []string {
		return append([]string{program, "-F", s.path("config"), "-o", "ControlMaster=no", "-o", "ControlPath=" + control}, args...)
	}
	program := ".zed_server/zed-remote-server-stable-1.2.3"
	gz := program + "-download-1.gz"
	for _, tt := range []struct {
		command string
		want    result
	}{
		{"cd; cmd /c ver", result{code: 127}}, // it is no Windows
		{"cd; sh -c 'echo $SHELL'", result{out: "/bin/sh\n"}},
		{"cd; uname -sm", result{out: strings.TrimSpace(uname(t)) + "\n"}},
		{"cd; " + program + " version", result{code: 127}}, // not there yet
		{"cd; mkdir -p .zed_server", result{}},
	} {
		got := s.run(nil, by("ssh", "box", "-T", tt.command)...)
		if got.out != tt.want.out || got.code != tt.want.code {
			t.Errorf("%s: %+v", tt.command, got)
		}
	}
	write(t, s.path("local.gz"), gzipped(t, zedServer))
	if got := s.run(strings.NewReader("put "+s.path("local.gz")+" "+gz+"\n"), by("sftp", "-b", "-", "box")...); got.code != 0 {
		t.Errorf("%+v", got)
	}
	// Where sftp fails it is scp, and extensions are directories.
	if got := s.run(nil, by("scp", s.path("local.gz"), "box:"+s.path("by-scp"))...); got.code != 0 {
		t.Errorf("%+v", got)
	}
	if got := s.run(nil, by("scp", "-C", "-r", s.path(".zed_server"), "box:"+s.path("extension"))...); got.code != 0 {
		t.Errorf("%+v", got)
	}
	extract := "cd; sh -c 'gunzip -f " + gz + " && chmod 755 " + strings.TrimSuffix(gz, ".gz") + " && mv " + strings.TrimSuffix(gz, ".gz") + " " + program + "'"
	if got := s.run(nil, by("ssh", "box", extract)...); got.code != 0 {
		t.Errorf("%+v", got)
	}
	if got := s.run(nil, by("ssh", "box", "cd; "+program+" version")...); got.out != "1.2.3\n" {
		t.Errorf("%+v", got)
	}
	s.zedTalks(by("ssh", "box", "-T", "cd; env RUST_LOG='info' "+program+" proxy --identifier workspace-1"))
	// A terminal is in one of Zed's own.
	terminal := strings.Join(by("ssh", "box", "-q", "-t", `'cd "$HOME/.zed_server" && exec env TERM=xterm-256color sh -c "pwd; tty -s && stty size"'`), " ")
	got := s.run(strings.NewReader(""), "script", "-qec", "stty rows 11 columns 77; "+terminal, "/dev/null")
	if !strings.Contains(strings.ReplaceAll(got.out, "\r", ""), "/.zed_server\n11 77\n") { // the local one is made raw late
		t.Errorf("%+q %d", got.out, got.code)
	}
	port, _ := hello(t)
	local := freePort(t)
	s.start(by("ssh", "box", "-N", "-L", local+":localhost:"+port)...)
	until(t, "the port is forwarded", func() bool { return s.curl("http://127.0.0.1:"+local) == "hello" })
	// The master's end is everybody's.
	_ = master.Process.Kill()
	_ = master.Wait()
	until(t, "it is forwarded no more", func() bool { return s.curl("http://127.0.0.1:"+local) != "hello" })
}

// zedTalks sends messages to the proxy and has them back, and then drops it.
func (s *served) zedTalks(args []string) {
	t := s.t
	t.Helper()
	proxy := s.start(args...)
	sent := make([][]byte, 300)
	for i := range sent {
		sent[i] = random(t, 1+i*i)
	}
	go func() {
		for _, m := range sent {
			_, _ = proxy.in.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(m))), m...))
		}
	}()
	for i, want := range sent {
		head := make([]byte, 4)
		if _, err := io.ReadFull(proxy.out, head); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, binary.LittleEndian.Uint32(head))
		if _, err := io.ReadFull(proxy.out, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("message %d: %d bytes of %d, %v", i, len(got), len(want), err)
		}
	}
	pid, err := os.ReadFile(s.path("proxy"))
	if err != nil {
		t.Fatal(err)
	}
	// As Zed ends it. The master, which sends eow@openssh.com to nobody but OpenSSH's
	// server, sends the end of the input with what it sends next: its answer to "are you
	// there".
	_ = proxy.Process.Kill()
	_ = proxy.Wait()
	s.gone(pid)
}

// gone waits for the end of a process.
func (s *served) gone(pid []byte) {
	s.t.Helper()
	until(s.t, "it is gone", func() bool {
		_, err := os.Stat("/proc/" + strings.TrimSpace(string(pid)))
		return errors.Is(err, os.ErrNotExist)
	})
}

func uname(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("uname", "-sm").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func gzipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := fmt.Fprint(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
