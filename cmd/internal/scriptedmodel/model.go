// Package scriptedmodel is a stand-in for a language model, for demo and tests
// alone: nothing in it thinks. It speaks OpenAI's chat completions API, so that
// a real agent runs real tools, and answers from a script that decides by what
// the agent's tools have answered so far. It says what it is in every reply's
// model name.
package scriptedmodel

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Name is the model's name.
const Name = "scripted-model"

// A Request is one question to the model, with the whole conversation in it.
type Request struct {
	At           time.Time // when it came
	System, User string
	HasTools     bool // without tools it asks for a title, or the like
	Calls        []ToolCall
}

// A ToolCall of the conversation, and what the agent's tool answered.
type ToolCall struct {
	ID, Tool  string
	Arguments string // JSON
	Answered  bool
	Result    string
}

// A Reply is a text, or the call of a tool, or with Status an HTTP error.
type Reply struct {
	Text      string
	Tool      string
	Arguments map[string]any
	Status    int
	// Wait holds the reply back until it is released.
	Wait bool
	// Broken replies are none: Garbage, Half or Hang.
	Broken string
}

// How a reply can be broken.
const (
	Garbage = "garbage" // 200, and no JSON
	Half    = "half"    // a stream that breaks off
	Hang    = "hang"    // nothing, for as long as the client waits
)

// A Script decides the next reply.
type Script func(Request) Reply

// A Server is the model. It is an http.Handler, safe for concurrent use.
type Server struct {
	key    string
	script Script
	mux    *http.ServeMux

	mu       sync.Mutex
	requests []Request
	calls    int
	waiting  map[chan struct{}]string // what the request was about
	released []string
}

// New returns a model that answers who shows key, by script.
func New(key string, script Script) *Server {
	s := &Server{key: key, script: script, mux: http.NewServeMux(), waiting: map[chan struct{}]string{}}
	s.mux.HandleFunc("POST /v1/chat/completions", s.complete)
	s.mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, "", map[string]any{"object": "list", "data": []any{map[string]string{"id": Name, "object": "model"}}})
	})
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+s.key)) != 1 {
		fail(w, http.StatusUnauthorized, "the scripted model's key is wrong")
		return
	}
	s.mux.ServeHTTP(w, r)
}

func fail(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeJSON(w, "", map[string]any{"error": map[string]any{"message": text, "type": "scripted", "code": status}})
}

func (s *Server) complete(w http.ResponseWriter, r *http.Request) {
	var in wireRequest
	at := time.Now()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<20))
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	req := in.request()
	req.At = at
	s.mu.Lock()
	s.requests = append(s.requests, req)
	s.calls++
	id := fmt.Sprintf("call_%d", s.calls)
	s.mu.Unlock()
	reply := s.script(req)
	if reply.Wait && !s.wait(r, req.User) {
		return
	}
	switch {
	case reply.Broken != "":
		broken(w, r, reply, id)
		return
	case reply.Status != 0:
		fail(w, reply.Status, reply.Text)
		return
	}
	send(w, in.Stream, reply, id)
}

// broken answers as no model should.
func broken(w http.ResponseWriter, r *http.Request, reply Reply, id string) {
	if reply.Broken == Hang {
		<-r.Context().Done()
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	if reply.Broken == Half {
		writeJSON(w, "data: ", map[string]any{"id": id, "object": "chat.completion.chunk", "model": Name,
			"choices": []any{map[string]any{"index": 0, "delta": map[string]any{"role": "assistant", "content": "I was about to"}}}})
		panic(http.ErrAbortHandler)
	}
	fmt.Fprint(w, "data: {{{ this is no JSON\n\n")
}

// Requests are all that came so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// wait holds a request back; false when its client has gone.
func (s *Server) wait(r *http.Request, about string) bool {
	s.mu.Lock()
	if slices.ContainsFunc(s.released, func(part string) bool { return strings.Contains(about, part) }) {
		s.mu.Unlock()
		return true
	}
	released := make(chan struct{})
	s.waiting[released] = about
	s.mu.Unlock()
	select {
	case <-released:
		return true
	case <-r.Context().Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waiting, released)
		return false
	}
}

// Release lets the replies go to requests whose text holds about: those that
// wait, and those to come, since an agent whose connection broke, or whose push
// did, asks again.
func (s *Server) Release(about string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.released, about) {
		s.released = append(s.released, about)
	}
	for released, text := range s.waiting {
		if strings.Contains(text, about) {
			close(released)
			delete(s.waiting, released)
		}
	}
}
