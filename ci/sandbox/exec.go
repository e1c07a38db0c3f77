package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"reflect"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"

	"codeberg.org/devaipod/devaipod/pods/relay"
)

func (c call) createExec(name string) error {
	m, err := c.things.container(name)
	if err != nil {
		return err
	}
	var o container.ExecOptions
	if err := c.json(&o); err != nil {
		return err
	}
	body, err := rewriteExec(o)
	if err != nil {
		return err
	}
	c.things.mu.Lock()
	full := len(c.things.execs) >= maxExecs
	c.things.mu.Unlock()
	if full {
		return refused("a job may run %d commands", maxExecs)
	}
	ctx, cancel := c.detach()
	defer cancel()
	resp, err := c.ask(ctx, http.MethodPost, compat+"/containers/"+m.id+"/exec", "", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var made container.ExecCreateResponse
	if err := readAnswer(resp, &made); err != nil {
		return err
	}
	if !hexID.MatchString(made.ID) {
		return fmt.Errorf("podman called an exec %.100q", made.ID)
	}
	c.things.mu.Lock()
	c.things.execs[made.ID] = true
	c.things.mu.Unlock()
	writeJSON(c.w, http.StatusCreated, made)
	return nil
}

// rewriteExec builds what podman is asked.
func rewriteExec(o container.ExecOptions) ([]byte, error) {
	out := container.ExecOptions{
		User: o.User, Tty: o.Tty, AttachStdin: o.AttachStdin, AttachStdout: o.AttachStdout, AttachStderr: o.AttachStderr,
		Env: o.Env, WorkingDir: o.WorkingDir, Cmd: o.Cmd,
	}
	if o.Privileged {
		return nil, notAllowed("Privileged", "")
	}
	if len(o.Cmd) == 0 {
		return nil, bad("exec: want a command")
	}
	if o.WorkingDir != "" && !path.IsAbs(o.WorkingDir) {
		return nil, bad("exec: working directory %.100q: want an absolute path", o.WorkingDir)
	}
	for _, kv := range o.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" || strings.ContainsRune(kv, 0) {
			return nil, bad("exec: %.100q is no variable", kv)
		}
	}
	o.User, o.Tty, o.AttachStdin, o.AttachStdout, o.AttachStderr, o.Env, o.WorkingDir, o.Cmd = "", false, false, false, false, nil, "", nil
	o.DetachKeys, o.ConsoleSize = "", nil
	if field := left(reflect.ValueOf(o)); field != "" {
		return nil, notAllowed(field, "")
	}
	return json.Marshal(out)
}

func (c call) exec(id string) error {
	c.things.mu.Lock()
	defer c.things.mu.Unlock()
	if !c.things.execs[id] {
		return notFound("exec", id)
	}
	return nil
}

func (c call) startExec(id string) error {
	if err := c.exec(id); err != nil {
		return err
	}
	var o container.ExecStartOptions
	if err := c.json(&o); err != nil {
		return err
	}
	body, err := json.Marshal(container.ExecStartOptions{Detach: o.Detach, Tty: o.Tty})
	if err != nil {
		return err
	}
	if o.Detach {
		resp, err := c.ask(c.r.Context(), http.MethodPost, compat+"/exec/"+id+"/start", "", bytes.NewReader(body))
		if err != nil {
			return err
		}
		return c.pass(resp, maxJSON)
	}
	return c.stream(compat+"/exec/"+id+"/start", nil, body)
}

func (c call) inspectExec(id string) error {
	if err := c.exec(id); err != nil {
		return err
	}
	var have container.ExecInspect
	if err := c.get(c.r.Context(), compat+"/exec/"+id+"/json", "", &have); err != nil {
		return err
	}
	writeJSON(c.w, http.StatusOK, container.ExecInspect{ExecID: id, ContainerID: have.ContainerID, Running: have.Running, ExitCode: have.ExitCode})
	return nil
}

func (c call) attach(name string) error {
	m, err := c.things.container(name)
	if err != nil {
		return err
	}
	q := url.Values{}
	for _, o := range []string{"stream", "stdin", "stdout", "stderr"} {
		if c.flag(o) {
			q.Set(o, "true")
		}
	}
	return c.stream(compat+"/containers/"+m.id+"/attach", q, nil)
}

// streamBegins is how long podman may take to begin a stream.
const streamBegins = 2 * time.Minute

// stream asks podman for a connection that is no more HTTP's, and joins it with the
// client's. What podman refuses is answered as usual.
func (c call) stream(path string, q url.Values, body []byte) error {
	far, err := c.connect(c.r.Context(), path, q, body)
	if err != nil {
		return err
	}
	defer far.Close()
	return c.join(far)
}

// connect asks podman for such a connection, which ends with ctx.
func (s *Sandbox) connect(ctx context.Context, path string, q url.Values, body []byte) (_ buffered, err error) {
	req, err := s.request(ctx, http.MethodPost, path, q.Encode(), bytes.NewReader(body))
	if err != nil {
		return buffered{}, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	conn, err := new(net.Dialer).DialContext(ctx, "unix", s.cfg.Podman.Socket())
	if err != nil {
		return buffered{}, fmt.Errorf("asking podman: %w", err)
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if err := errors.Join(conn.SetDeadline(time.Now().Add(streamBegins)), req.Write(conn)); err != nil {
		return buffered{}, fmt.Errorf("asking podman: %w", err)
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, req) //nolint:bodyclose // what follows is the stream
	if err != nil {
		return buffered{}, fmt.Errorf("asking podman: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols && resp.StatusCode != http.StatusOK {
		return buffered{}, answerError(resp)
	}
	return buffered{conn, reader}, conn.SetDeadline(time.Time{})
}

// join answers the client as Docker does and copies both ways until both are done, or
// the sandbox is closed: with its connection taken over, the request's context is the
// server's.
func (c call) join(far buffered) error {
	near, rw, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return err
	}
	if err := near.SetDeadline(time.Time{}); err != nil {
		return errors.Join(err, near.Close())
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
	if c.r.Header.Get("Upgrade") != "" {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	}
	_, _ = io.WriteString(near, head) // a client that is gone shows when it is read from
	relay.Join(c.r.Context(), buffered{near, rw.Reader}, far)
	return nil
}

// buffered is a connection of which something was read already.
type buffered struct {
	net.Conn
	reader *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.reader.Read(p) }

// CloseWrite ends one way.
func (b buffered) CloseWrite() error {
	half, ok := b.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}
