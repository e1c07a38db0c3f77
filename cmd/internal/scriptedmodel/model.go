// Package scriptedmodel is a stand-in for a language model, for demo and tests
// alone: nothing in it thinks. It speaks the APIs that a pod's gate admits, so
// that a real agent runs real tools, and answers from a script that decides by
// what the agent's tools have answered so far. It says what it is in every
// reply's model name.
//
// Each API has a file of its own, after its reference: OpenAI's chat completions
// and responses below /v1, Anthropic's messages there too, and Gemini's
// generateContent below /v1beta. Each wants the key in its own header, and in no
// other.
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

	"codeberg.org/devaipod/devaipod/pods/usage"
)

// Name is the model's name.
const Name = "scripted-model"

// A Request is one question to the model, with the whole conversation in it.
type Request struct {
	At           time.Time // when it came
	API          string    // Chat, Responses, Messages or Gemini
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
	used     usage.Totals
	waiting  map[chan struct{}]string // what the request was about
	released []string
}

// New returns a model that answers who shows key, by script.
func New(key string, script Script) *Server {
	s := &Server{key: key, script: script, mux: http.NewServeMux(), waiting: map[chan struct{}]string{}}
	for pattern, a := range map[string]api{
		"POST /v1/chat/completions":  chat{},
		"POST /v1/responses":         responses{},
		"POST /v1/messages":          messages{},
		"POST /v1beta/models/{call}": gemini{},
	} {
		s.mux.HandleFunc(pattern, s.guard(a, func(w http.ResponseWriter, r *http.Request) { s.complete(a, w, r) }))
	}
	list := func(a api) http.HandlerFunc {
		return s.guard(a, func(w http.ResponseWriter, _ *http.Request) { whole(w, a.models()) })
	}
	s.mux.HandleFunc("GET /v1beta/models", list(gemini{}))
	s.mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(versionHeader) != "" {
			list(messages{})(w, r)
			return
		}
		list(chat{})(w, r)
	})
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// guard lets requests through that show the key as a wants it.
func (s *Server) guard(a api, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(a.key(r.Header)), []byte(s.key)) != 1 {
			a.fail(w, http.StatusUnauthorized, "the scripted model's key is wrong")
			return
		}
		next(w, r)
	}
}

// An api is a way to speak to the model. Its methods have no state.
type api interface {
	// key is what h shows as the key, "" for none.
	key(h http.Header) string
	// read turns the wire's form into what a script reads.
	read(r *http.Request, body []byte) (req Request, stream bool, err error)
	// send writes a reply, streamed as it is asked for, or whole.
	send(w http.ResponseWriter, r *http.Request, a answer)
	// half begins a stream.
	half(w http.ResponseWriter, id string)
	fail(w http.ResponseWriter, status int, text string)
	models() any
	// said is what each reply says that it used: 110 tokens in all.
	said() usage.Tokens
}

// An answer is a reply on its way.
type answer struct {
	id     string // of the call, if it is one
	stream bool
	text   string
	tool   string
	args   string // JSON
}

func (s *Server) complete(a api, w http.ResponseWriter, r *http.Request) {
	at := time.Now()
	var req Request
	var stream bool
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<20))
	if err == nil {
		req, stream, err = a.read(r, body)
	}
	if err != nil {
		a.fail(w, http.StatusBadRequest, err.Error())
		return
	}
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
		broken(a, w, r, reply, id)
		return
	case reply.Status != 0:
		a.fail(w, reply.Status, reply.Text)
		return
	}
	args, err := json.Marshal(reply.Arguments)
	if err != nil {
		a.fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	s.mu.Lock()
	s.used = s.used.Add(usage.Totals{Requests: 1, Tokens: a.said()})
	s.mu.Unlock()
	a.send(w, r, answer{id: id, stream: stream, text: reply.Text, tool: reply.Tool, args: string(args)})
}

// broken answers as no model should.
func broken(a api, w http.ResponseWriter, r *http.Request, reply Reply, id string) {
	if reply.Broken == Hang {
		<-r.Context().Done()
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	if reply.Broken == Half {
		a.half(w, id)
		panic(http.ErrAbortHandler)
	}
	fmt.Fprint(w, "data: {{{ this is no JSON\n\n")
}

// Used is what its replies said so far that they used; broken ones and errors say
// nothing.
func (s *Server) Used() usage.Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
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
