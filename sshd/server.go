package sshd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"
)

// Config is what a [Server] is made from.
type Config struct {
	HostKey gossh.Signer
	// HostCert is shown beside it to clients that trust who signed it; nil for none.
	HostCert gossh.Signer
	Keys     Keys
	User     User
	// Env is what commands get beside what a login gives them, as "NAME=value".
	Env []string
	// Dial opens what a client forwards to; a net.Dialer's when nil. The network is
	// tcp or unix.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Log  *slog.Logger
	// Conns, where it is set, is told how many connections there are each time that
	// this changes. It must not block, nor call the server.
	Conns func(n int)

	// Grace is how long a login may take; 30 s when 0.
	Grace time.Duration
	// Rekey is after how many bytes the keys of a connection are renewed; as often as
	// the cipher needs it when 0.
	Rekey uint64
	// Alive is after how much silence a client is asked whether it is there; it is
	// given up after three times that. 30 s when 0.
	Alive time.Duration
}

// Bounds on what one server keeps, and one connection.
const (
	maxConns    = 512
	maxWaiting  = 64 // connections that have not logged in
	maxChannels = 1024
	maxForwards = 64 // that a connection listens for
	maxTries    = 6  // to log in, a connection
)

// A Server serves SSH. Its methods are safe for concurrent use.
type Server struct {
	cfg Config
	ssh *ssh.Server

	mu      sync.Mutex
	conns   int
	waiting int
	failed  map[string]failures // logins, by address
	ended   bool

	sessions sync.WaitGroup // that are begun with mu, before the end
}

// New returns a server; an error names what in cfg can't be.
func New(cfg Config) (*Server, error) {
	if cfg.HostKey == nil || cfg.Keys == nil {
		return nil, errors.New("an SSH server needs a host key, and keys that it lets in")
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialWithin}).DialContext
	}
	if cfg.Grace == 0 {
		cfg.Grace = 30 * time.Second
	}
	if cfg.Alive == 0 {
		cfg.Alive = 30 * time.Second
	}
	s := &Server{cfg: cfg, failed: map[string]failures{}}
	s.ssh = &ssh.Server{
		Version:                  "devaipod",
		HostSigners:              cfg.hostKeys(),
		ConnCallback:             s.arrives,
		ConnectionFailedCallback: s.turnedAway,
		ServerConfigCallback:     s.protocol,
		// Without one of the library's own handlers it would let everybody in.
		PublicKeyHandler: s.knows,
		ChannelHandlers: map[string]ssh.ChannelHandler{
			"session":                        s.channel(s.session),
			"direct-tcpip":                   s.channel(s.directTCP),
			"direct-streamlocal@openssh.com": s.channel(s.directUnix),
		},
		RequestHandlers: map[string]ssh.RequestHandler{
			"tcpip-forward":                          s.request(s.forwardTCP),
			"cancel-tcpip-forward":                   s.request(s.cancelTCP),
			"streamlocal-forward@openssh.com":        s.request(s.forwardUnix),
			"cancel-streamlocal-forward@openssh.com": s.request(s.cancelUnix),
			"keepalive@openssh.com":                  func(ssh.Context, *ssh.Server, *gossh.Request) (bool, []byte) { return true, nil },
		},
	}
	return s, nil
}

func (cfg Config) hostKeys() []ssh.Signer {
	if cfg.HostCert != nil {
		return []ssh.Signer{cfg.HostCert, cfg.HostKey}
	}
	return []ssh.Signer{cfg.HostKey}
}

// Serve takes connections from l until ctx ends, then closes all and waits until
// their commands were told.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = s.ssh.Close() })
	defer stop()
	err := s.ssh.Serve(l)
	if ctx.Err() == nil {
		return err
	}
	s.end()
	return ctx.Err()
}

// end waits for the sessions; no more begin.
func (s *Server) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.sessions.Wait()
}

// protocol is the ciphers and the like: what is not broken, the fastest first.
func (s *Server) protocol(ctx ssh.Context) *gossh.ServerConfig {
	c := &gossh.ServerConfig{MaxAuthTries: maxTries}
	c.RekeyThreshold = s.cfg.Rekey
	c.Ciphers = []string{gossh.CipherAES128GCM, gossh.CipherAES256GCM, gossh.CipherChaCha20Poly1305, gossh.CipherAES256CTR, gossh.CipherAES128CTR}
	c.MACs = []string{gossh.HMACSHA256ETM, gossh.HMACSHA512ETM, gossh.HMACSHA256, gossh.HMACSHA512}
	c.KeyExchanges = []string{gossh.KeyExchangeMLKEM768X25519, gossh.KeyExchangeCurve25519, gossh.KeyExchangeECDHP256}
	// A client may show many keys before it proves that it has one: what is kept of
	// them must be of the proven one.
	c.VerifiedPublicKeyCallback = func(meta gossh.ConnMetadata, key gossh.PublicKey, _ *gossh.Permissions, _ string) (*gossh.Permissions, error) {
		rule, err := s.cfg.Keys.Find(meta, key)
		if err != nil {
			return nil, err
		}
		conn := ctx.Value(connKey).(*conn)
		conn.rule = rule
		s.loggedIn(conn)
		s.cfg.Log.Info("logged in", "from", meta.RemoteAddr().String(), "key", gossh.FingerprintSHA256(key), "name", rule.Comment)
		return &gossh.Permissions{}, nil
	}
	return c
}

// knows tells a client whether a key that it shows would do.
func (s *Server) knows(ctx ssh.Context, key ssh.PublicKey) bool {
	_, err := s.cfg.Keys.Find(meta{ctx}, key)
	if err != nil {
		s.cfg.Log.Debug("a key is refused", "from", ctx.RemoteAddr().String(), "key", gossh.FingerprintSHA256(key), "err", err)
	}
	return err == nil
}

// meta is what the library tells of a connection that logs in.
type meta struct{ ssh.Context }

func (m meta) SessionID() []byte     { return []byte(m.Context.SessionID()) }
func (m meta) ClientVersion() []byte { return []byte(m.Context.ClientVersion()) }
func (m meta) ServerVersion() []byte { return []byte(m.Context.ServerVersion()) }

type connKeyType struct{}

var connKey connKeyType

// A conn is a connection.
type conn struct {
	net.Conn
	r      *bufio.Reader // the library reads each packet in small pieces
	server *Server
	grace  *time.Timer
	rule   Rule // of the key that it came in with

	mu       sync.Mutex
	in       bool // it has logged in
	closed   bool
	channels int
	forwards map[string]net.Listener
	alive    sync.Once
}

// begins counts a session; false when the server is at its end.
func (s *Server) begins() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.sessions.Add(1)
	}
	return !s.ended
}

// arrives counts a connection, and turns away what is too much.
func (s *Server) arrives(ctx ssh.Context, c net.Conn) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := s.failed[host(c.RemoteAddr())].wait()
	if s.conns >= maxConns || s.waiting >= maxWaiting || wait > 0 {
		s.cfg.Log.Warn("a connection is turned away", "from", c.RemoteAddr().String(), "connections", s.conns, "not_logged_in", s.waiting, "wait", wait)
		return nil
	}
	s.count(1)
	s.waiting++
	n := &conn{Conn: c, r: bufio.NewReaderSize(c, 64<<10), server: s, forwards: map[string]net.Listener{}}
	n.grace = time.AfterFunc(s.cfg.Grace, func() { _ = c.Close() })
	ctx.SetValue(connKey, n)
	return n
}

// count changes how many connections there are. The caller has mu.
func (s *Server) count(by int) {
	s.conns += by
	if s.cfg.Conns != nil {
		s.cfg.Conns(s.conns)
	}
}

func (c *conn) Read(p []byte) (int, error) { return c.r.Read(p) }

// Close is called once the connection is over, and may be called again.
func (c *conn) Close() error {
	c.mu.Lock()
	again, in := c.closed, c.in
	c.closed = true
	for _, l := range c.forwards {
		_ = l.Close()
	}
	c.mu.Unlock()
	if !again {
		c.grace.Stop()
		c.server.mu.Lock()
		c.server.count(-1)
		if !in {
			c.server.waiting--
		}
		c.server.mu.Unlock()
	}
	return c.Conn.Close()
}

func (s *Server) loggedIn(c *conn) {
	c.grace.Stop()
	c.mu.Lock()
	counted := c.in || c.closed
	c.in = true
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !counted {
		s.waiting--
	}
	delete(s.failed, host(c.RemoteAddr()))
}

// failures are the logins of an address that went wrong in a row.
type failures struct {
	n    int
	last time.Time
}

// How many logins may fail before an address has to wait, and for how long at most.
const (
	freeFailures = 5
	maxWait      = time.Minute
	maxAddresses = 4096
)

func (f failures) wait() time.Duration {
	if f.n < freeFailures {
		return 0
	}
	return time.Until(f.last.Add(min(maxWait, time.Second<<min(f.n-freeFailures, 10))))
}

// turnedAway notes a login that went wrong.
func (s *Server) turnedAway(c net.Conn, err error) {
	_ = c.Close()
	var auth *gossh.ServerAuthError
	if !errors.As(err, &auth) {
		s.cfg.Log.Debug("no login", "from", c.RemoteAddr().String(), "err", err)
		return
	}
	s.cfg.Log.Warn("a login is refused", "from", c.RemoteAddr().String(), "err", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failed) >= maxAddresses {
		clear(s.failed)
	}
	f := s.failed[host(c.RemoteAddr())]
	s.failed[host(c.RemoteAddr())] = failures{n: f.n + 1, last: time.Now()}
}

func host(a net.Addr) string {
	h, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return h
}

// A client is a connection that has logged in, as the channels see it.
type client struct {
	*conn
	ssh *gossh.ServerConn
	ctx context.Context
}

// channel bounds the channels of a connection.
func (s *Server) channel(serve func(*client, gossh.NewChannel)) ssh.ChannelHandler {
	return func(_ *ssh.Server, sc *gossh.ServerConn, ch gossh.NewChannel, ctx ssh.Context) {
		c := &client{conn: ctx.Value(connKey).(*conn), ssh: sc, ctx: ctx}
		if !c.enter() {
			_ = ch.Reject(gossh.ResourceShortage, fmt.Sprintf("a connection has at most %d channels", maxChannels))
			return
		}
		defer c.leave()
		c.alive.Do(func() { go c.watch() })
		serve(c, ch)
	}
}

func (c *conn) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.channels >= maxChannels || c.closed {
		return false
	}
	c.channels++
	return true
}

func (c *conn) leave() {
	c.mu.Lock()
	c.channels--
	c.mu.Unlock()
}

// request gives a request of a connection its client.
func (s *Server) request(serve func(*client, []byte) (bool, []byte)) ssh.RequestHandler {
	return func(ctx ssh.Context, _ *ssh.Server, req *gossh.Request) (bool, []byte) {
		sc := ctx.Value(ssh.ContextKeyConn).(*gossh.ServerConn)
		c := &client{conn: ctx.Value(connKey).(*conn), ssh: sc, ctx: ctx}
		c.alive.Do(func() { go c.watch() })
		return serve(c, req.Payload)
	}
}

// watch closes a connection whose client is there no more, as after its cable was
// pulled.
func (c *client) watch() {
	for {
		answered := make(chan error, 1)
		go func() {
			_, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil)
			answered <- err
		}()
		select {
		case err := <-answered:
			if err != nil {
				return
			}
		case <-time.After(3 * c.server.cfg.Alive):
			c.server.cfg.Log.Info("a client does not answer any more", "from", c.RemoteAddr().String())
			_ = c.Close()
			return
		case <-c.ctx.Done():
			return
		}
		select {
		case <-time.After(c.server.cfg.Alive):
		case <-c.ctx.Done():
			return
		}
	}
}

// HostKey reads a private host key; one that is not there is made, ed25519.
func HostKey(path string) (gossh.Signer, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		text, err = newHostKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("the host key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("the host key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the host key %s may be read by others (%04o); run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	key, err := gossh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("the host key %s: %w", path, err)
	}
	return key, nil
}

// HeedSignals has this process take signals that it was started to ignore, as nohup has
// it, without ending by them: what it starts would ignore them as well, and a shell that
// ignores SIGHUP can't be told of it. A program that serves calls it first.
func HeedSignals() {
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

// A User is who commands run as: the user of this process.
type User struct {
	Name, Home, Shell string
	// Dir is where commands and shells begin, Home when "".
	Dir string
	// Plain shells are no login shells: those forget what an image has put into PATH
	// (/etc/profile of Debian).
	Plain bool
}

// Me finds the user of this process in /etc/passwd. One who is not there, as in many
// containers, has the home of $HOME and the shell of $SHELL, or what there is.
func Me() User {
	u := User{Name: os.Getenv("USER"), Home: os.Getenv("HOME"), Shell: os.Getenv("SHELL")}
	text, _ := os.ReadFile("/etc/passwd") // without it, the environment has to do
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) == 7 && f[2] == fmt.Sprint(os.Getuid()) {
			u = User{Name: f[0], Home: f[5], Shell: f[6]}
			break
		}
	}
	if u.Name == "" {
		u.Name = fmt.Sprint(os.Getuid())
	}
	if info, err := os.Stat(u.Home); err != nil || !info.IsDir() || !filepath.IsAbs(u.Home) {
		u.Home = "/"
	}
	for _, shell := range []string{u.Shell, "/bin/bash", "/bin/sh"} {
		if info, err := os.Stat(shell); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			u.Shell = shell
			return u
		}
	}
	u.Shell = ""
	return u
}
