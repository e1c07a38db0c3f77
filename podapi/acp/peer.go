package acp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/coder/acp-go-sdk"
)

const (
	// maxLine bounds one message of the agent's, in bytes; longer ones are left out.
	maxLine = 8 << 20
	// maxID bounds how an agent may call a request.
	maxID = 1 << 10
)

// message is a JSON-RPC 2.0 request, notification or response, on a line of its own.
type message struct {
	JSONRPC string            `json:"jsonrpc"`
	ID      json.RawMessage   `json:"id,omitempty"`
	Method  string            `json:"method,omitempty"`
	Params  json.RawMessage   `json:"params,omitempty"`
	Result  json.RawMessage   `json:"result,omitempty"`
	Error   *acp.RequestError `json:"error,omitempty"`
}

// A peer is the agent at the other end of a connection. Its messages are taken one
// after the other, and none is queued: an agent that sends more than that waits, and
// what it sends is never more than a line in memory. (The SDK's own connection keeps
// a thousand lines, ends when there are more, and has a goroutine for each request.)
type peer struct {
	conn net.Conn
	on   handler
	// patience is how long it may not read what it is told.
	patience time.Duration
	done     chan struct{} // closed when the agent has gone

	mu      sync.Mutex
	next    int
	pending map[string]chan message

	writing sync.Mutex
}

// A handler takes what an agent sends of itself. Neither method may wait.
type handler interface {
	notified(method string, params json.RawMessage)
	// asked takes a request; who answers calls answer, at any time.
	asked(method string, params json.RawMessage, answer func(result any, err *acp.RequestError))
	// garbled is told of a line that is no message.
	garbled(line []byte)
}

func newPeer(conn net.Conn, patience time.Duration, on handler) *peer {
	p := &peer{conn: conn, patience: patience, on: on, done: make(chan struct{}), pending: map[string]chan message{}}
	go p.read()
	return p
}

// close ends the connection, and so the agent's process, and waits until nothing of
// it comes any more.
func (p *peer) close() {
	_ = p.conn.Close()
	<-p.done
}

func (p *peer) read() {
	defer close(p.done)
	r := bufio.NewReaderSize(p.conn, 64<<10)
	for {
		line, err := readLine(r)
		if err != nil {
			return // what there is of a last line is no message
		}
		p.take(line)
	}
}

// readLine reads a line; of one that is too long only the beginning.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if room := maxLine + 1 - len(line); room > 0 {
			line = append(line, part[:min(room, len(part))]...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

func (p *peer) take(line []byte) {
	var m message
	switch {
	case len(bytes.TrimSpace(line)) == 0:
	case len(line) > maxLine, json.Unmarshal(line, &m) != nil, len(m.ID) > maxID, m.Method == "" && len(m.ID) == 0:
		p.on.garbled(line)
	case m.Method != "" && len(m.ID) == 0:
		p.on.notified(m.Method, m.Params)
	case m.Method != "":
		id := m.ID
		p.on.asked(m.Method, m.Params, func(result any, err *acp.RequestError) { p.answer(id, result, err) })
	default:
		p.mu.Lock()
		waiting := p.pending[string(m.ID)]
		delete(p.pending, string(m.ID))
		p.mu.Unlock()
		if waiting != nil {
			waiting <- m
		}
	}
}

func (p *peer) answer(id json.RawMessage, result any, failed *acp.RequestError) {
	m := message{ID: id, Error: failed}
	if failed == nil {
		var err error
		if m.Result, err = json.Marshal(result); err != nil {
			m.Error = acp.NewInternalError(nil)
		}
	}
	_ = p.write(m) // an agent that has gone needs none
}

// write sends a message; an agent that does not take it has gone.
func (p *peer) write(m message) error {
	m.JSONRPC = "2.0"
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	p.writing.Lock()
	defer p.writing.Unlock()
	err = p.conn.SetWriteDeadline(time.Now().Add(p.patience))
	if err == nil {
		_, err = p.conn.Write(append(text, '\n'))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("telling the agent: %w", err), p.conn.Close())
	}
	return nil
}

// notify tells the agent something that it does not answer.
func (p *peer) notify(method string, params any) error {
	text, err := json.Marshal(params)
	if err != nil {
		return err
	}
	return p.write(message{Method: method, Params: text})
}

// ask sends a request; its answer comes on the channel, if the agent stays.
func (p *peer) ask(method string, params any) (<-chan message, error) {
	text, err := json.Marshal(params)
	if err != nil {
		return nil, err
	}
	answer := make(chan message, 1)
	p.mu.Lock()
	p.next++
	id := fmt.Sprint(p.next)
	p.pending[id] = answer
	p.mu.Unlock()
	return answer, p.write(message{ID: json.RawMessage(id), Method: method, Params: text})
}

// call sends a request and waits for its answer.
func (p *peer) call(ctx context.Context, within time.Duration, method string, params, out any) error {
	answer, err := p.ask(method, params)
	if err != nil {
		return err
	}
	over := time.NewTimer(within)
	defer over.Stop()
	select {
	case m := <-answer:
		if m.Error != nil {
			return m.Error
		}
		return json.Unmarshal(m.Result, out)
	case <-p.done:
		return fmt.Errorf("%s: %w", method, errGone)
	case <-over.C:
		return fmt.Errorf("%s: no answer for %s", method, within)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errGone is what the end of the agent's process is.
var errGone = fmt.Errorf("the agent's program has ended: %w", io.ErrUnexpectedEOF)
