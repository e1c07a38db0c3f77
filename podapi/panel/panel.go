package panel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Person is an account of the forge: its name may be another one's some day, its
// number not.
type Person struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
}

// A Place is an issue or a pull request of the forge.
type Place struct {
	Owner, Repo string
	Number      int64
}

// String is the place as people write it: owner/repo#3.
func (p Place) String() string { return fmt.Sprintf("%s/%s#%d", p.Owner, p.Repo, p.Number) }

// The acts of a person.
const (
	Start   = "start"
	Stop    = "stop"
	Retry   = "retry"
	Message = "message"
	Answer  = "answer"
	Budget  = "budget"
)

// An Act is what a person wants.
type Act struct {
	Kind string `json:"act"`
	// Text is a message's; an answer's choice, by its number; a budget's amount; the name
	// of the agent that is to start, "" for the one without.
	Text string `json:"text"`
	Ask  string `json:"ask"` // what is answered, by [Shown.Ask]
}

// Shown is what a panel shows. Its texts are hostile.
type Shown struct {
	Issue   string   `json:"issue"`
	State   string   `json:"state"` // "" of an issue without an agent
	Facts   []Fact   `json:"facts"`
	Choices []string `json:"choices,omitempty"` // of what it asks
	Ask     string   `json:"ask,omitempty"`     // names that
	Acts    []string `json:"acts"`              // what may be done now, by who may do it
	Agents  []string `json:"agents,omitempty"`  // the names of those that can be started, beside the one without
}

// A Fact is one thing that is told.
type Fact struct {
	Name  string   `json:"name"`
	Lines []string `json:"lines"`
	Link  string   `json:"link,omitempty"`
	Alert bool     `json:"alert,omitempty"` // somebody has to look at it
}

// Agents is what a panel is about. Its methods are called concurrently.
type Agents interface {
	// Access asks the forge what an account may do in a place's repository now: read
	// its code, push. Nothing when the account is not there any more.
	Access(ctx context.Context, who Person, at Place) (read, write bool, err error)
	// Look tells of the agent of an issue, or of the issue that a pull request is for, and
	// who may push of an issue on which one could be started; false for all others.
	Look(ctx context.Context, at Place, push bool) (Shown, bool, error)
	// Do does what a person wants who may push; the error is for that person.
	Do(ctx context.Context, who Person, at Place, act Act) error
	// Refused is told of acts of somebody who may not.
	Refused(who Person, at Place, act Act)
}

// Config is what a [Panel] is made from.
type Config struct {
	Agents Agents
	// Listen is the service's loopback address, host:port.
	Listen string
	// Forge is the forge's URL, for browsers and for us.
	Forge string
	// Client and Secret are our application of the forge.
	Client, Secret string
	// Key signs the tokens.
	Key string
	// Transport carries what is asked of the forge.
	Transport http.RoundTripper
	Now       func() time.Time // time.Now when nil
	Log       *slog.Logger
}

// A Panel answers the script, and logs people in. It is safe for concurrent use.
type Panel struct {
	cfg    Config
	origin string // the forge's
	host   string // ours
	forge  *http.Client
	mux    *http.ServeMux
}

// New checks cfg and returns a panel.
func New(cfg Config) (*Panel, error) {
	forge, err := url.Parse(cfg.Forge)
	if err != nil || forge.Host == "" {
		return nil, fmt.Errorf("the panel: %q is no URL of a forge", cfg.Forge)
	}
	host, err := hostOf(cfg.Listen)
	if err != nil {
		return nil, err
	}
	if cfg.Agents == nil || cfg.Client == "" || cfg.Secret == "" || cfg.Key == "" || cfg.Log == nil {
		return nil, errors.New("panel: Agents, Client, Secret, Key and Log must be set")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Forge = strings.TrimRight(cfg.Forge, "/")
	p := &Panel{cfg: cfg, origin: forge.Scheme + "://" + forge.Host, host: host, mux: http.NewServeMux()}
	p.forge = &http.Client{Transport: cfg.Transport, Timeout: forgeWithin, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	p.mux.HandleFunc("GET /login", p.logIn)
	p.mux.HandleFunc("GET "+callback, p.callback)
	p.mux.HandleFunc("GET /login.js", handOver)
	p.mux.HandleFunc("OPTIONS /look", p.preflight)
	p.mux.HandleFunc("OPTIONS /act", p.preflight)
	p.mux.HandleFunc("GET /look", p.fromForge(p.look))
	p.mux.HandleFunc("POST /act", p.fromForge(p.act))
	return p, nil
}

// hostOf is where the panel is for browsers. No pod is called so.
func hostOf(listen string) (string, error) {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("the panel's address: %w", err)
	}
	return "panel.localhost:" + port, nil
}

// Handler answers at the panel's origin; all else goes to next.
func (p *Panel) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.EqualFold(r.Host, p.host) {
			next.ServeHTTP(w, r)
			return
		}
		head := w.Header()
		head.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Referrer-Policy", "no-referrer")
		head.Set("Cache-Control", "no-store")
		p.mux.ServeHTTP(w, r)
	})
}

// fromForge lets requests through that a page of the forge makes, for somebody who is
// logged in.
func (p *Panel) fromForge(h func(http.ResponseWriter, *http.Request, Person)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !p.share(w, r) {
			return
		}
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		who, ok := p.person(token)
		if !ok {
			http.Error(w, "log in", http.StatusUnauthorized)
			return
		}
		h(w, r, who)
	}
}

// share lets a page of the forge, and no other, read the answer.
func (p *Panel) share(w http.ResponseWriter, r *http.Request) bool {
	head := w.Header()
	head.Add("Vary", "Origin")
	if r.Header.Get("Origin") != p.origin {
		http.Error(w, "this is for pages of "+p.origin, http.StatusForbidden)
		return false
	}
	head.Set("Access-Control-Allow-Origin", p.origin)
	return true
}

// preflight answers a browser that asks whether it may ask (fetch.spec.whatwg.org,
// 3.2.2; the last header is for browsers that ask it of this machine).
func (p *Panel) preflight(w http.ResponseWriter, r *http.Request) {
	if !p.share(w, r) {
		return
	}
	head := w.Header()
	head.Set("Access-Control-Allow-Methods", "GET, POST")
	head.Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
	head.Set("Access-Control-Allow-Private-Network", "true")
	head.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
}

var name = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,100}$`)

// place reads which issue or pull request is meant, and answers where it can't.
func place(w http.ResponseWriter, r *http.Request) (Place, bool) {
	q := r.URL.Query()
	owner, repo, _ := strings.Cut(q.Get("repo"), "/")
	n, err := strconv.ParseInt(q.Get("number"), 10, 64)
	if err != nil || n <= 0 || !name.MatchString(owner) || !name.MatchString(repo) || strings.Trim(owner, ".") == "" || strings.Trim(repo, ".") == "" {
		http.Error(w, "want repo=owner/name and a number", http.StatusBadRequest)
		return Place{}, false
	}
	return Place{owner, repo, n}, true
}

// access asks the forge, and answers where it does not say.
func (p *Panel) access(w http.ResponseWriter, r *http.Request, who Person, at Place) (read, write, ok bool) {
	read, write, err := p.cfg.Agents.Access(r.Context(), who, at)
	if err != nil {
		p.cfg.Log.Warn("what somebody may see in the panel can't be asked", "who", who.Name, "at", at.String(), "err", err)
		http.Error(w, "the forge does not say what you may do", http.StatusBadGateway)
		return false, false, false
	}
	return read, read && write, true
}

const nothing = "nothing is here for you"

func (p *Panel) look(w http.ResponseWriter, r *http.Request, who Person) {
	at, ok := place(w, r)
	if !ok {
		return
	}
	read, write, ok := p.access(w, r, who, at)
	if !ok {
		return
	}
	if !read {
		http.Error(w, nothing, http.StatusNotFound)
		return
	}
	shown, found, err := p.cfg.Agents.Look(r.Context(), at, write)
	switch {
	case err != nil:
		p.cfg.Log.Warn("a panel can't be shown", "at", at.String(), "err", err)
		http.Error(w, "the service's log has why", http.StatusBadGateway)
	case !found:
		http.Error(w, nothing, http.StatusNotFound)
	default:
		if !write {
			shown.Acts, shown.Agents = nil, nil
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(shown); err != nil {
			p.cfg.Log.Debug("answering a panel", "err", err)
		}
	}
}

// maxAct bounds what a person writes, in bytes.
const maxAct = 64 << 10

func (p *Panel) act(w http.ResponseWriter, r *http.Request, who Person) {
	at, ok := place(w, r)
	if !ok {
		return
	}
	var act Act
	in := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAct))
	if err := in.Decode(&act); err != nil {
		http.Error(w, "that is no act, or one of more than 64 KiB", http.StatusBadRequest)
		return
	}
	if act.Text = strings.TrimSpace(act.Text); act.Text == "" && (act.Kind == Message || act.Kind == Answer || act.Kind == Budget) {
		http.Error(w, "nothing is sent that is empty", http.StatusBadRequest)
		return
	}
	read, write, ok := p.access(w, r, who, at)
	switch {
	case !ok:
	case !read:
		http.Error(w, nothing, http.StatusNotFound)
	case !write:
		p.cfg.Agents.Refused(who, at, act)
		http.Error(w, "only who may push to the repository may do that", http.StatusForbidden)
	default:
		if err := p.cfg.Agents.Do(r.Context(), who, at, act); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}
