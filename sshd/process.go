package sshd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// A process is what a session runs: a command, a shell or SFTP.
type process struct {
	*session
	command  string // "" for a shell
	original string // what the client asked for
	sftp     bool
	done     chan struct{} // closed when run has returned

	mu   sync.Mutex
	pid  int        // of the leader of its session, 0 while there is none
	open []*os.File // our ends of its pipes
	gone bool       // so is the client
}

// signals are those that a client may send, as RFC 4254, 6.10 names them.
var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP,
	"ILL": syscall.SIGILL, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE,
	"QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV, "TERM": syscall.SIGTERM,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
}

// The exit codes of a shell for what can't be run.
const (
	exitCannot  = 126
	exitMissing = 127
)

// run runs it to its end, and tells the client of that.
func (p *process) run() {
	if p.sftp {
		err := serveSFTP(p.Channel)
		code := 0
		if err != nil {
			p.server.cfg.Log.Debug("sftp ended", "err", err)
			code = 1
		}
		p.exit(code)
		return
	}
	if p.server.cfg.User.Shell == "" {
		p.say("there is no shell here: neither the user's own nor /bin/sh; sftp works without one")
		p.exit(exitMissing)
		return
	}
	cmd := p.cmd()
	var err error
	if p.tty != nil {
		err = p.inTerminal(cmd)
	} else {
		err = p.withPipes(cmd)
	}
	if err != nil {
		p.say("%s can't be started: %v", cmd.Path, err)
		p.exit(exitCannot)
		return
	}
	p.tell(cmd.ProcessState)
}

func (p *process) cmd() *exec.Cmd {
	u := p.server.cfg.User
	cmd := &exec.Cmd{Path: u.Shell, Dir: cmp.Or(u.Dir, u.Home), Env: p.environment()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	switch name := filepath.Base(u.Shell); {
	case p.command != "":
		cmd.Args = []string{name, "-c", p.command}
	case u.Plain:
		cmd.Args = []string{name}
	default:
		cmd.Args = []string{"-" + name} // a login shell
	}
	return cmd
}

// environment is what sshd(8) names in LOGIN PROCESS and ENVIRONMENT.
func (p *process) environment() []string {
	u, cfg := p.server.cfg.User, p.server.cfg
	env := map[string]string{}
	set := func(lines ...string) {
		for _, line := range lines {
			if name, value, ok := strings.Cut(line, "="); ok {
				env[name] = value
			}
		}
	}
	set("PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")
	set(cfg.Env...)
	set("HOME="+u.Home, "USER="+u.Name, "LOGNAME="+u.Name, "SHELL="+u.Shell)
	set(p.env...)
	set(p.rule.Env...)
	from, fromPort := split(p.RemoteAddr())
	to, toPort := split(p.LocalAddr())
	set(fmt.Sprintf("SSH_CLIENT=%s %s %s", from, fromPort, toPort), fmt.Sprintf("SSH_CONNECTION=%s %s %s %s", from, fromPort, to, toPort))
	if p.rule.Command != "" && p.original != "" {
		set("SSH_ORIGINAL_COMMAND=" + p.original)
	}
	if p.agent != nil {
		set("SSH_AUTH_SOCK=" + p.agent.path)
	}
	if p.tty != nil {
		set("TERM="+p.tty.term, "SSH_TTY="+p.tty.name)
	}
	lines := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		lines = append(lines, name+"="+env[name])
	}
	return lines
}

// split is an address as the variables have it; a socket has none.
func split(a net.Addr) (host, port string) {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return "UNKNOWN", "65535" // as OpenSSH says it
	}
	return host, port
}

// begin starts cmd, unless the client has gone meanwhile. When it goes later, ours are
// closed.
func (p *process) begin(cmd *exec.Cmd, ours ...*os.File) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return errors.New("the client has gone")
	}
	p.open = ours
	if err := cmd.Start(); err != nil {
		return err
	}
	p.pid = cmd.Process.Pid
	return nil
}

// wait waits for the process alone. Its group gets no signal any more then: the
// number may be another's.
func (p *process) wait(cmd *exec.Cmd) {
	_, _ = waitNoReap(cmd.Process.Pid)
	p.mu.Lock()
	p.pid = 0
	p.mu.Unlock()
	_ = cmd.Wait() // how it ended is in its state
}

// withPipes runs cmd on three pipes. As with OpenSSH the session is over when the
// command has ended and all that has its output is done with it.
func (p *process) withPipes(cmd *exec.Cmd) error {
	var ends [3][2]*os.File
	for i := range ends {
		r, w, err := os.Pipe()
		if err != nil {
			for _, e := range ends[:i] {
				_, _ = e[0].Close(), e[1].Close()
			}
			return err
		}
		widen(r)
		ends[i] = [2]*os.File{r, w}
	}
	in, out, errs := ends[0], ends[1], ends[2]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in[0], out[1], errs[1]
	err := p.begin(cmd, in[1], out[0], errs[0])
	_, _, _ = in[0].Close(), out[1].Close(), errs[1].Close()
	if err != nil {
		_, _, _ = in[1].Close(), out[0].Close(), errs[0].Close()
		return err
	}
	go func() {
		_ = copyBy(wideBuffers, in[1], p.Channel)
		_ = in[1].Close()
	}()
	var output sync.WaitGroup
	output.Go(func() { p.send(p.Channel, out[0]) })
	output.Go(func() { p.send(p.Stderr(), errs[0]) })
	p.wait(cmd)
	output.Wait()
	_ = in[1].Close()
	return nil
}

// widen makes room in a pipe. Where it can't be, as when the user has too many, it is
// slower.
func widen(pipe *os.File) {
	if raw, err := pipe.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}

// send gives the client what is read, and nobody what comes once it has gone.
func (p *process) send(to io.Writer, from *os.File) {
	_ = copyTo(to, from)
	_, _ = io.Copy(io.Discard, from)
	_ = from.Close()
}

// copyTo copies with a buffer of a channel's window's share.
func copyTo(to io.Writer, from io.Reader) error { return copyBy(buffers, to, from) }

func copyBy(pool *sync.Pool, to io.Writer, from io.Reader) error {
	buf := pool.Get().(*[]byte)
	defer pool.Put(buf)
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, *buf)
	return err
}

// pipeSize is what a pipe to or from a command holds, and what is copied into one at
// once: the fewer the switches between the two, the faster. Out of one it is less, since
// a client that takes packets of any size would be sent larger ones than the library can.
const pipeSize = 256 << 10

var buffers, wideBuffers = buffersOf(64 << 10), buffersOf(pipeSize)

func buffersOf(size int) *sync.Pool {
	return &sync.Pool{New: func() any { b := make([]byte, size); return &b }}
}

// flushWithin is how long the output of what has ended may take to be read where
// something else still has the terminal.
const flushWithin = 100 * time.Millisecond

// inTerminal runs cmd in the session's terminal.
func (p *process) inTerminal(cmd *exec.Cmd) error {
	slave, err := p.tty.slave()
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setctty = true
	err = p.begin(cmd)
	_ = slave.Close()
	if err != nil {
		return err
	}
	go func() { _ = copyTo(p.tty.master, p.Channel) }()
	read := make(chan struct{})
	go func() {
		defer close(read)
		_ = copyTo(p.Channel, p.tty.master) // byte for byte; its end is an error, EIO
	}()
	p.wait(cmd)
	// What still has the terminal may go on, without a reader: as with OpenSSH.
	for {
		before := p.tty.pending()
		select {
		case <-read:
			return nil
		case <-time.After(flushWithin):
		}
		if before == 0 && p.tty.pending() == 0 {
			_ = p.tty.master.SetReadDeadline(time.Now())
			<-read
			return nil
		}
	}
}

// lastWords is how long what runs may write after it was told that nobody reads it,
// before its pipes are closed: one that ends on SIGPIPE does not come to its own end.
const lastWords = 2 * time.Second

// hangUp tells what runs that nobody is there any more, and hears its last words out: a
// shell says of what it ran that it was hung up before it comes to its own trap. Without a
// terminal that is the command alone, and not what it has in its background: editors leave
// their servers there, for the next connection.
func (p *process) hangUp() {
	p.mu.Lock()
	p.gone = true
	ours := p.open
	p.mu.Unlock()
	if p.kill(syscall.SIGHUP, p.tty != nil) == nil { // else it has ended; others may have its pipes
		select {
		case <-p.done:
		case <-time.After(lastWords):
		}
	}
	for _, f := range ours {
		_ = f.Close()
	}
}

// signal sends a signal to the process and those of its group.
func (p *process) signal(sig syscall.Signal) error { return p.kill(sig, true) }

func (p *process) kill(sig syscall.Signal, group bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid == 0 {
		return os.ErrProcessDone
	}
	if group {
		return syscall.Kill(-p.pid, sig)
	}
	return syscall.Kill(p.pid, sig)
}

// tell says how it has ended: RFC 4254, 6.10.
func (p *process) tell(state *os.ProcessState) {
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		p.exit(state.ExitCode())
		return
	}
	name := fmt.Sprintf("%d@devaipod", int(status.Signal()))
	for n, s := range signals {
		if s == status.Signal() {
			name = n
		}
	}
	p.end("exit-signal", gossh.Marshal(struct {
		Name          string
		Core          bool
		Message, Lang string
	}{name, status.CoreDump(), status.Signal().String(), ""}))
}

func (p *process) exit(code int) {
	p.end("exit-status", gossh.Marshal(struct{ Code uint32 }{uint32(code)}))
}

// end tells how it ended before it tells that there is no more output: a client whose
// input has ended, too, closes the channel on that, and hears nothing more.
func (p *process) end(how string, payload []byte) {
	_, _ = p.SendRequest(how, false, payload)
	_ = p.CloseWrite()
}
