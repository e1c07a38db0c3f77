package sshd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// dialWithin is how long what a client forwards to may take to answer.
const dialWithin = 15 * time.Second

const maxSocketPath = 107 // of a unix socket's address on Linux

// directTCP is a port that a client forwards to us: RFC 4254, 7.2.
func (s *Server) directTCP(c *client, ch gossh.NewChannel) {
	var m struct {
		Host       string
		Port       uint32
		Origin     string
		OriginPort uint32
	}
	if err := gossh.Unmarshal(ch.ExtraData(), &m); err != nil || m.Port > 65535 {
		_ = ch.Reject(gossh.ConnectionFailed, "this is no address")
		return
	}
	s.direct(c, ch, "tcp", net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port))))
}

// directUnix is a socket that a client forwards to us: OpenSSH's PROTOCOL, 2.4.
func (s *Server) directUnix(c *client, ch gossh.NewChannel) {
	var m struct {
		Path     string
		Reserved string
		Zero     uint32
	}
	if err := gossh.Unmarshal(ch.ExtraData(), &m); err != nil || m.Path == "" || len(m.Path) > maxSocketPath {
		_ = ch.Reject(gossh.ConnectionFailed, "this is no socket's path")
		return
	}
	s.direct(c, ch, "unix", m.Path)
}

func (s *Server) direct(c *client, ch gossh.NewChannel, network, addr string) {
	if c.rule.NoForward {
		_ = ch.Reject(gossh.Prohibited, "this key may not forward ports")
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, dialWithin)
	defer cancel()
	conn, err := s.cfg.Dial(ctx, network, addr)
	if err != nil {
		_ = ch.Reject(gossh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := ch.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	join(channel, requests, conn)
}

// join carries bytes both ways. Each way ends for itself, and so does the whole when
// either side is gone.
func join(channel gossh.Channel, requests <-chan *gossh.Request, conn net.Conn) {
	go gossh.DiscardRequests(requests)
	var ways sync.WaitGroup
	ways.Go(func() {
		err := copyTo(conn, channel)
		if half, ok := conn.(interface{ CloseWrite() error }); err == nil && ok {
			_ = half.CloseWrite()
			return
		}
		_ = conn.Close()
	})
	ways.Go(func() {
		if err := copyTo(channel, conn); err != nil {
			_ = channel.Close()
			return
		}
		_ = channel.CloseWrite()
	})
	ways.Wait()
	_, _ = conn.Close(), channel.Close()
}

// keep keeps what is listened on for a client until it is cancelled or the client
// goes. name is what the client cancels it by.
func (c *client) keep(l net.Listener, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	switch {
	case c.closed:
		err = net.ErrClosed
	case len(c.forwards) >= maxForwards:
		err = fmt.Errorf("a connection forwards at most %d ports", maxForwards)
	case c.forwards[name] != nil:
		err = fmt.Errorf("%s is forwarded already", name)
	default:
		c.forwards[name] = l
		return nil
	}
	return errors.Join(err, l.Close())
}

func (c *client) cancel(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.forwards[name]
	delete(c.forwards, name)
	return l != nil && l.Close() == nil
}

// serve gives the client a channel for each connection to l.
func (c *client) serve(l net.Listener, kind string, about func(net.Conn) []byte) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if !c.enter() {
			_ = conn.Close()
			continue
		}
		go func() {
			defer c.leave()
			channel, requests, err := c.ssh.OpenChannel(kind, about(conn))
			if err != nil {
				_ = conn.Close()
				return
			}
			join(channel, requests, conn)
		}()
	}
}

// bind is a tcpip-forward request: RFC 4254, 7.1.
type bind struct {
	Host string
	Port uint32
}

func (b bind) name() string { return net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port))) }

// forwardTCP listens for a client. As with OpenSSH's GatewayPorts=no it is on the
// loopback address, whatever the client asks for.
func (s *Server) forwardTCP(c *client, payload []byte) (bool, []byte) {
	var b bind
	if gossh.Unmarshal(payload, &b) != nil || b.Port > 65535 || c.rule.NoForward {
		return false, nil
	}
	chosen := b.Port == 0
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(b.Port))))
	if err == nil {
		b.Port = uint32(l.Addr().(*net.TCPAddr).Port)
		err = c.keep(l, b.name())
	}
	if err != nil {
		s.cfg.Log.Info("a port is not forwarded", "from", c.RemoteAddr().String(), "port", b.Port, "err", err)
		return false, nil
	}
	go c.serve(l, "forwarded-tcpip", func(conn net.Conn) []byte {
		host, port, _ := net.SplitHostPort(conn.RemoteAddr().String()) // it is one of TCP
		n, _ := strconv.ParseUint(port, 10, 16)
		return gossh.Marshal(struct {
			Host       string
			Port       uint32
			Origin     string
			OriginPort uint32
		}{b.Host, b.Port, host, uint32(n)})
	})
	if !chosen {
		return true, nil
	}
	return true, gossh.Marshal(struct{ Port uint32 }{b.Port})
}

func (s *Server) cancelTCP(c *client, payload []byte) (bool, []byte) {
	var b bind
	return gossh.Unmarshal(payload, &b) == nil && c.cancel(b.name()), nil
}

// forwardUnix listens on a socket for a client: OpenSSH's PROTOCOL, 2.4.
func (s *Server) forwardUnix(c *client, payload []byte) (bool, []byte) {
	var m struct{ Path string }
	if gossh.Unmarshal(payload, &m) != nil || m.Path == "" || len(m.Path) > maxSocketPath || c.rule.NoForward {
		return false, nil
	}
	l, err := listenUnix(m.Path)
	if err == nil {
		err = c.keep(l, "unix:"+m.Path)
	}
	if err != nil {
		s.cfg.Log.Info("a socket is not forwarded", "from", c.RemoteAddr().String(), "path", m.Path, "err", err)
		return false, nil
	}
	go c.serve(l, "forwarded-streamlocal@openssh.com", func(net.Conn) []byte {
		return gossh.Marshal(struct{ Path, Reserved string }{m.Path, ""})
	})
	return true, nil
}

func (s *Server) cancelUnix(c *client, payload []byte) (bool, []byte) {
	var m struct{ Path string }
	return gossh.Unmarshal(payload, &m) == nil && c.cancel("unix:"+m.Path), nil
}

// An agentSocket is where commands find the client's SSH agent. close may be called
// on nil.
type agentSocket struct {
	net.Listener
	dir, path string
}

// listenAgent makes the socket: draft-ietf-sshm-ssh-agent, 8, by OpenSSH's names.
func (s *session) listenAgent() (*agentSocket, error) {
	dir, err := os.MkdirTemp("", "ssh-")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "agent")
	l, err := listenUnix(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	a := &agentSocket{Listener: l, dir: dir, path: path}
	go s.serve(l, "auth-agent@openssh.com", func(net.Conn) []byte { return nil })
	return a, nil
}

func (a *agentSocket) close() {
	if a != nil {
		_ = a.Close()
		_ = os.RemoveAll(a.dir)
	}
}

// listenUnix listens on a new socket that this user alone may open.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
