package sshd

import (
	"fmt"
	"slices"
	"strings"

	gossh "golang.org/x/crypto/ssh"
)

// A session is a channel of that type: RFC 4254, 6.
type session struct {
	*client
	gossh.Channel
	env     []string
	tty     *terminal // nil without a PTY
	agent   *agentSocket
	process *process // that runs; nil before
}

// Bounds on what a client asks of a session before it begins.
const (
	maxEnv      = 64
	maxEnvValue = 8 << 10
	maxCommand  = 1 << 20
)

// accepted are the variables that a client may set: AcceptEnv of Debian's sshd, and
// what git and terminals send.
func accepted(name string) bool {
	return name == "LANG" || strings.HasPrefix(name, "LC_") ||
		slices.Contains([]string{"COLORTERM", "NO_COLOR", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "GIT_PROTOCOL", "TZ"}, name)
}

func (s *Server) session(c *client, ch gossh.NewChannel) {
	if !s.begins() {
		_ = ch.Reject(gossh.ResourceShortage, "the server is at its end")
		return
	}
	defer s.sessions.Done()
	channel, requests, err := ch.Accept()
	if err != nil {
		return
	}
	ses := &session{client: c, Channel: channel}
	for req := range requests {
		ok := ses.handle(req)
		if req.WantReply {
			_ = req.Reply(ok, nil) // to who has gone, nothing can be said
		}
		if ok && slices.Contains([]string{"shell", "exec", "subsystem"}, req.Type) {
			go func() {
				ses.process.run()
				close(ses.process.done)
				_ = channel.Close() // its other end may have gone
			}()
		}
	}
	// The client has closed the channel, or is gone. What runs is told, and may go on.
	if ses.process != nil {
		ses.process.hangUp()
	}
	ses.agent.close()
	ses.tty.close()
	_ = channel.Close()
}

// handle judges a request. What it wants to be run is run after the answer.
func (s *session) handle(req *gossh.Request) bool {
	switch req.Type {
	case "env":
		return s.setenv(req.Payload)
	case "pty-req":
		return s.pty(req.Payload)
	case "window-change":
		var size windowSize
		return gossh.Unmarshal(req.Payload, &size) == nil && s.tty.resize(size) == nil
	case "signal":
		return s.signal(req.Payload)
	case "auth-agent-req@openssh.com":
		return s.forwardAgent()
	case "shell":
		return s.prepare("", "")
	case "exec":
		var m struct{ Command string }
		return gossh.Unmarshal(req.Payload, &m) == nil && len(m.Command) <= maxCommand && s.prepare(m.Command, "")
	case "subsystem":
		var m struct{ Name string }
		return gossh.Unmarshal(req.Payload, &m) == nil && m.Name == "sftp" && s.prepare("", m.Name)
	case "x11-req":
		s.server.cfg.Log.Info("X11 is not forwarded", "from", s.RemoteAddr().String())
	}
	return false
}

func (s *session) setenv(payload []byte) bool {
	var m struct{ Name, Value string }
	if gossh.Unmarshal(payload, &m) != nil || s.process != nil || len(s.env) >= maxEnv || len(m.Value) > maxEnvValue ||
		!accepted(m.Name) || strings.ContainsAny(m.Name, "=\x00") || strings.Contains(m.Value, "\x00") {
		return false
	}
	s.env = append(s.env, m.Name+"="+m.Value)
	return true
}

func (s *session) pty(payload []byte) bool {
	if s.process != nil || s.tty != nil || s.rule.NoPTY {
		return false
	}
	tty, err := openTerminal(payload)
	if err != nil {
		s.server.cfg.Log.Warn("no terminal for a session", "err", err)
		return false
	}
	s.tty = tty
	return true
}

func (s *session) forwardAgent() bool {
	if s.process != nil || s.agent != nil || s.rule.NoAgent {
		return false
	}
	a, err := s.listenAgent()
	if err != nil {
		s.server.cfg.Log.Warn("the client's agent can't be forwarded", "err", err)
		return false
	}
	s.agent = a
	return true
}

// prepare makes what is to be run; a session runs one thing.
func (s *session) prepare(command, subsystem string) bool {
	if s.process != nil {
		return false
	}
	original := command
	if s.rule.Command != "" {
		command, subsystem = s.rule.Command, ""
		if command == "internal-sftp" {
			command, subsystem = "", "sftp"
		}
	}
	s.process = &process{session: s, command: command, original: original, sftp: subsystem != "", done: make(chan struct{})}
	return true
}

// signal sends a signal to what runs, by its name without SIG: RFC 4254, 6.9.
func (s *session) signal(payload []byte) bool {
	var m struct{ Name string }
	if gossh.Unmarshal(payload, &m) != nil {
		return false
	}
	sig, ok := signals[m.Name]
	return ok && s.process != nil && s.process.signal(sig) == nil
}

// say tells the client's user something in place of what was to run.
func (s *session) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.Stderr(), "devaipod: "+format+"\r\n", args...)
}
