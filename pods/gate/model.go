package gate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/redact"
)

// A route of a model's API that the gate admits, below the base URL.
type route struct{ method, path string }

var modelRoutes = map[string][]route{
	podfile.APIOpenAI:    {{"POST", "/chat/completions"}, {"GET", "/models"}},
	podfile.APIAnthropic: {{"POST", "/messages"}, {"POST", "/messages/count_tokens"}, {"GET", "/models"}},
}

// maxModelRequest bounds a request to the model, in bytes: a long context with
// images.
const maxModelRequest = 64 << 20

// forwardModel sends a request on to the model with the real key.
func (g *Gate) forwardModel(w http.ResponseWriter, r *http.Request, path string) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxModelRequest))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "devaipod: "+err.Error())
		return
	}
	if r.Method == http.MethodPost {
		if why := refuseModel(body, g.cfg.File.Model); why != "" {
			g.cfg.Log.Warn("gate: refused a request to the model", "why", clean(why))
			refuse(w, http.StatusBadRequest, "devaipod: "+why)
			return
		}
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, strings.TrimSuffix(g.model.String(), "/")+path, bytes.NewReader(body))
	if err != nil {
		refuse(w, http.StatusBadRequest, "devaipod: "+err.Error())
		return
	}
	copyHeaders(out.Header, r.Header, "Content-Type", "Accept", "Anthropic-Version", "Anthropic-Beta")
	switch {
	case g.cfg.Key == "":
	case g.cfg.File.Model.API == podfile.APIAnthropic:
		out.Header.Set("X-Api-Key", g.cfg.Key)
	default:
		out.Header.Set("Authorization", "Bearer "+g.cfg.Key)
	}
	g.traffic.begin()
	status, failure := g.relayModel(w, out)
	if r.Context().Err() != nil {
		failure = "" // the agent broke it off: nothing is wrong with the model
	}
	g.traffic.end(status, failure)
	if failure != "" {
		g.cfg.Log.Warn("gate: the model", "status", status, "err", failure)
	}
}

// relayModel passes the model's answer back as it comes.
func (g *Gate) relayModel(w http.ResponseWriter, out *http.Request) (status int, failure string) {
	resp, err := g.direct.Do(out)
	if err != nil {
		failure = "the model does not answer: " + cause(err)
		refuse(w, http.StatusBadGateway, "devaipod: "+failure)
		return 0, failure
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		failure = fmt.Sprintf("the model answered %d, a redirect, which is not followed; is model.url right?", resp.StatusCode)
		refuse(w, http.StatusBadGateway, "devaipod: "+failure)
		return resp.StatusCode, failure
	}
	copyHeaders(w.Header(), resp.Header, "Content-Type", "Retry-After", "Retry-After-Ms", "Request-Id", "X-Request-Id")
	redact.Header(w.Header(), g.cfg.Key)
	w.WriteHeader(resp.StatusCode)
	var head bytes.Buffer
	body := redact.NewWriter(w, g.cfg.Key)
	from := io.Reader(resp.Body)
	if resp.StatusCode == http.StatusOK {
		from = counter{resp.Body, g.traffic.received}
	}
	err = stream(body, w, from, &head)
	if err == nil {
		err = body.Flush()
	}
	if err != nil {
		return resp.StatusCode, "the model's answer broke off: " + cause(err)
	}
	if resp.StatusCode != http.StatusOK {
		failure = fmt.Sprintf("the model answered %d: %.300s", resp.StatusCode, redact.String(head.String(), g.cfg.Key))
	}
	return resp.StatusCode, failure
}

// A counter tells what is read through it.
type counter struct {
	io.Reader
	read func(n int)
}

func (c counter) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.read(n)
	return n, err
}

// cause leaves the URL out of an HTTP client's error.
func cause(err error) string {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err.Error()
}

// stream copies with a flush after each read, so that tokens come as they are
// made: what is read of r goes to dst, which writes to w. The first bytes are
// kept in head, if that is not nil.
func stream(dst io.Writer, w http.ResponseWriter, r io.Reader, head *bytes.Buffer) error {
	rc := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if head != nil && head.Len() < 4096 {
				head.Write(buf[:min(n, 4096-head.Len())])
			}
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return werr
			}
			if ferr := rc.Flush(); ferr != nil && !errors.Is(ferr, http.ErrNotSupported) {
				return ferr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// dialModel reaches a model on the host's loopback through the service: an
// upgrade request, then the bare connection.
func dialModel(ctx context.Context, service func(context.Context) (net.Conn, error)) (net.Conn, error) {
	conn, err := service(ctx)
	if err != nil {
		return nil, fmt.Errorf("the service does not answer: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	br := bufio.NewReader(conn)
	if err := upgrade(conn, br); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return buffered{conn, br}, nil
}

// upgrade asks for the bare connection.
func upgrade(conn net.Conn, br *bufio.Reader) error {
	if _, err := io.WriteString(conn, "GET /dial/model HTTP/1.1\r\nHost: service\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 500))
	return errors.Join(fmt.Errorf("the service said: %s", strings.TrimSpace(string(text))), err)
}

// buffered reads first what came along with the upgrade's answer.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }
