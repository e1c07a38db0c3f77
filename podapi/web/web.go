package web

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

// A Pod is what the page shows of one beside what its pod-api tells.
type Pod struct {
	Name        string // a DNS label
	Issue       string // owner/repo#3
	Title       string
	URL         string // the issue's
	State       string
	Doing       string // the agent's own state, as it was seen last
	Why         string
	Agent       string // that the label names
	Branch      string
	PullRequest string // its URL
	SSH         string // the command that goes into its workspace
	CI          string // URL of what CI says of the branch's commits
	Activity    string
	Used        string // of the model, against the budget
	Labeler     string
	Started     time.Time
	Blocked     []Block
	Place       int // in the queue, from 1
	Choices     []string
	Checked     string // what became of a run of its checks
	Approved    string // how far people approve of its work, and why that has not landed
	Container   string // the pod's name as podman has it, "" for none
	Note        string // about an order
	Trouble     string // why the rest may be old
	Open        bool   // it reaches every public host
	// Runs says that there is a pod-api to ask.
	Runs bool
}

// A Block is a host that the pod was refused.
type Block struct{ Host, Why, Allow string }

// Work is what is saved of an agent's work.
type Work struct {
	At            time.Time // zero when nothing is saved
	Branch        string
	Ahead, Behind int      // commits, of the branch of the forge that it left
	Unpushed      []string // subjects of commits that the forge does not have
	Uncommitted   []string // files, and what was done to them
	Stat          string   // the diff's stat against the base
	NotSaved      []string
}

// Warning tells in words what of it is not on the forge, "" for nothing.
func (w Work) Warning() string {
	var parts []string
	if n := len(w.Unpushed); n > 0 {
		parts = append(parts, plural(n, "commit")+" not pushed")
	}
	if n := len(w.Uncommitted); n > 0 {
		parts = append(parts, plural(n, "file")+" not committed")
	}
	return strings.Join(parts, ", ")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Pods is what the pages are about. Its methods are called concurrently.
type Pods interface {
	// List is all of them, in an order that stays.
	List() []Pod
	// Control is the way to a pod's pod-api.
	Control(name string) (*podapi.Client, error)
	// Work is what is saved of a pod's agent; Diff is that against the base, as git
	// prints it, bounded.
	Work(ctx context.Context, name string) (Work, error)
	Diff(ctx context.Context, name string) (string, error)
	// Unpushed is how many commits and changes of a pod's agent are not on the forge, as
	// of lately.
	Unpushed(ctx context.Context, name string) (int, error)
	// Past are the newest n of a pod's events before an id, the oldest first.
	Past(name string, before int64, n int) ([]podapi.Event, error)
	// Retry has an agent that has failed try again.
	Retry(name string) error
}

// Config is what a [Site] is made from.
type Config struct {
	Pods Pods
	// Listen is the address that people's browsers reach the service at, host:port.
	Listen string
	// Token is the login's; it must not be empty.
	Token string
	// Acted is told what a person did with a pod (message, stop or retry) and how it
	// ended; nil for nobody.
	Acted func(name, what string, err error)
	Log   *slog.Logger
}

// A Site serves the pages. It is safe for concurrent use.
type Site struct {
	cfg    Config
	port   string
	login  *login
	home   http.Handler // of the service's origin
	page   http.Handler // of a pod's
	agent  http.Handler // of its agent's
	guard  *http.CrossOriginProtection
	static http.Handler
	routes map[string][]string // patterns, by the origin's kind: home, page, agent
}

// A mux notes what it has, for tests that go through all of it.
type mux struct {
	*http.ServeMux
	note func(pattern string)
}

func (s *Site) newMux(kind string) mux {
	return mux{http.NewServeMux(), func(pattern string) { s.routes[kind] = append(s.routes[kind], pattern) }}
}

func (m mux) Handle(pattern string, h http.Handler) {
	m.note(pattern)
	m.ServeMux.Handle(pattern, h)
}

func (m mux) HandleFunc(pattern string, h http.HandlerFunc) { m.Handle(pattern, h) }

//go:embed static
var static embed.FS

// New returns the site.
func New(cfg Config) (*Site, error) {
	_, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("the pages' address: %w", err)
	}
	if cfg.Token == "" || cfg.Pods == nil || cfg.Log == nil {
		return nil, errors.New("web: Token, Pods and Log must be set")
	}
	files, err := fs.Sub(static, "static")
	if err != nil {
		return nil, err
	}
	s := &Site{cfg: cfg, port: port, login: newLogin(cfg.Token), guard: http.NewCrossOriginProtection(), static: http.FileServerFS(files), routes: map[string][]string{}}
	s.home, s.page, s.agent = s.homeRoutes(), s.pageRoutes(), s.agentRoutes()
	return s, nil
}

// Handler answers at the origins of pods, and /pods/ at the service's own; what is
// not for pages goes to next.
func (s *Site) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, pod := s.podOf(r.Host)
		pages := strings.HasPrefix(r.URL.Path, "/pods/") || r.URL.Path == "/pods" || r.URL.Path == "/"
		switch {
		case pod && name == homeName:
			s.serve(w, r, s.home)
		case pod:
			agents := strings.HasSuffix(name, ofAgent)
			r = r.WithContext(context.WithValue(r.Context(), podKey{}, strings.TrimSuffix(name, ofAgent)))
			if agents {
				s.serveAgent(w, r)
				return
			}
			s.serve(w, r, s.page)
		case pages && s.ours(r.Host):
			http.Redirect(w, r, s.base()+"/pods/", http.StatusSeeOther)
		case pages && r.URL.Path != "/":
			http.Error(w, "these pages are at "+s.base()+"/pods/", http.StatusMisdirectedRequest)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (s *Site) serve(w http.ResponseWriter, r *http.Request, h http.Handler) {
	head := w.Header()
	head.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Cross-Origin-Opener-Policy", "same-origin")
	head.Set("Cross-Origin-Resource-Policy", "same-origin")
	head.Set("Cache-Control", "no-store")
	if err := s.guard.Check(r); err != nil {
		http.Error(w, "that came from another page: "+err.Error(), http.StatusForbidden)
		return
	}
	h.ServeHTTP(w, r)
}

// ofAgent ends the name of the origin at which an agent's own pages are: another site
// than the pod's page, for browsers. A pod's name ends otherwise.
const ofAgent = "-a"

// serveAgent serves the agent's own pages. What they may do is for them to say; no
// other page shows or uses them.
func (s *Site) serveAgent(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Cross-Origin-Opener-Policy", "same-origin")
	w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
	w.Header().Set("X-Frame-Options", "DENY")
	if err := s.guard.Check(r); err != nil {
		http.Error(w, "that came from another page: "+err.Error(), http.StatusForbidden)
		return
	}
	s.agent.ServeHTTP(w, r)
}

// enterAgent is where a ticket for an agent's pages is taken.
const enterAgent = "/.devaipod-enter"

func (s *Site) agentRoutes() http.Handler {
	mux := s.newMux("agent")
	mux.HandleFunc("GET "+enterAgent, s.takeTicket)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.login.admitted(r, r.Host):
			s.proxy(w, r, "/agent"+r.URL.Path)
		case r.URL.Path == "/" && r.Method == http.MethodGet:
			http.Redirect(w, r, s.base()+"/pods/enter?agent=1&pod="+url.QueryEscape(podName(r)), http.StatusSeeOther)
		default:
			http.Error(w, "log in at "+s.base()+"/pods/", http.StatusUnauthorized)
		}
	})
	return mux
}

// takeTicket lets a browser in that has one.
func (s *Site) takeTicket(w http.ResponseWriter, r *http.Request) {
	if s.login.redeem(r.URL.Query().Get("ticket"), r.Host) {
		s.login.admit(w, r.Host)
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// podKey finds a pod's name in a request's context.
type podKey struct{}

func podName(r *http.Request) string {
	name, _ := r.Context().Value(podKey{}).(string)
	return name
}

// podOf tells which pod's origin a host is.
func (s *Site) podOf(host string) (name string, ok bool) {
	name, ok = strings.CutSuffix(strings.ToLower(host), ".localhost:"+s.port)
	return name, ok && name != "" && !strings.Contains(name, ".")
}

// homeName is where the list is and people log in: not at localhost, whose cookies go
// to whatever listens on a port there, such as one that was forwarded from a pod. No
// pod is called so.
const homeName = "pods"

// ours tells whether a host is the service's own address.
func (s *Site) ours(host string) bool {
	return host == s.cfg.Listen || host == "localhost:"+s.port
}

// base is the origin of the list and of logins; podBase a pod's.
func (s *Site) base() string { return s.podBase(homeName) }

func (s *Site) podBase(name string) string { return "http://" + s.podHost(name) }

func (s *Site) podHost(name string) string { return name + ".localhost:" + s.port }

// Open is a URL that lets a browser in, once and within a minute: at a pod's page, or
// at the list when name is "".
func (s *Site) Open(name string) string {
	q := url.Values{"ticket": {s.login.issue(s.podHost(homeName))}}
	if name != "" {
		q.Set("pod", name)
	}
	return s.base() + "/pods/enter?" + q.Encode()
}

// Link is a URL of a pod's page, for who is logged in or has the token.
func (s *Site) Link(name string) string { return s.base() + "/pods/enter?pod=" + name }

// find is a pod by its name.
func (s *Site) find(name string) (Pod, bool) {
	for _, p := range s.cfg.Pods.List() {
		if p.Name == name {
			return p, true
		}
	}
	return Pod{}, false
}

func (s *Site) homeRoutes() http.Handler {
	mux := s.newMux("home")
	mux.Handle("GET /{$}", http.RedirectHandler("/pods/", http.StatusSeeOther))
	mux.Handle("GET /pods", http.RedirectHandler("/pods/", http.StatusSeeOther))
	mux.HandleFunc("GET /pods/{$}", s.inside(s.list))
	mux.HandleFunc("GET /pods/rows", s.inside(s.rows))
	mux.Handle("GET /pods/static/", http.StripPrefix("/pods/static", s.static))
	mux.HandleFunc("GET /pods/enter", s.enterHome)
	mux.HandleFunc("POST /pods/login", s.logIn)
	mux.HandleFunc("POST /pods/logout", func(w http.ResponseWriter, r *http.Request) {
		dismiss(w)
		http.Redirect(w, r, "/pods/", http.StatusSeeOther)
	})
	return mux
}

// inside is for those that have logged in; others see the login.
func (s *Site) inside(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.login.admitted(r, r.Host) {
			s.render(w, http.StatusUnauthorized, "login", loginPage{})
			return
		}
		h(w, r)
	}
}

func (s *Site) logIn(w http.ResponseWriter, r *http.Request) {
	if !form(w, r, 4<<10) {
		return
	}
	if !s.login.knows(strings.TrimSpace(r.PostForm.Get("token"))) {
		s.cfg.Log.Warn("a login to the pages failed", "from", r.RemoteAddr)
		s.render(w, http.StatusUnauthorized, "login", loginPage{Failed: true})
		return
	}
	s.login.admit(w, r.Host)
	http.Redirect(w, r, "/pods/", http.StatusSeeOther)
}

// enterHome lets in who has a ticket, and leads on to a pod's page.
func (s *Site) enterHome(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	in := s.login.admitted(r, r.Host)
	if t := q.Get("ticket"); t != "" && s.login.redeem(t, r.Host) {
		s.login.admit(w, r.Host)
		in = true
	}
	name := q.Get("pod")
	_, known := s.find(name)
	switch {
	case !in:
		s.render(w, http.StatusUnauthorized, "login", loginPage{Late: q.Get("ticket") != ""})
	case known && q.Get("agent") != "":
		http.Redirect(w, r, s.podBase(name+ofAgent)+enterAgent+"?ticket="+s.login.issue(s.podHost(name+ofAgent)), http.StatusSeeOther)
	case known:
		http.Redirect(w, r, s.podBase(name)+"/enter?ticket="+s.login.issue(s.podHost(name)), http.StatusSeeOther)
	default:
		http.Redirect(w, r, "/pods/", http.StatusSeeOther)
	}
}

func (s *Site) pageRoutes() http.Handler {
	mux := s.newMux("page")
	mux.Handle("GET /static/", http.StripPrefix("/static", s.static))
	mux.HandleFunc("GET /enter", s.takeTicket)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if !s.login.admitted(r, r.Host) {
			http.Redirect(w, r, s.base()+"/pods/enter?pod="+url.QueryEscape(podName(r)), http.StatusSeeOther)
			return
		}
		s.pod(w, r)
	})
	mux.HandleFunc("GET /facts", s.within(s.facts))
	mux.HandleFunc("GET /diff", s.within(s.diff))
	mux.HandleFunc("GET /past", s.within(s.past))
	mux.HandleFunc("GET /events", s.within(s.control))
	mux.HandleFunc("POST /messages", s.within(s.say))
	mux.HandleFunc("POST /stop", s.within(func(w http.ResponseWriter, r *http.Request) {
		s.acted(r, "stop", nil)
		s.control(w, r)
	}))
	mux.HandleFunc("POST /retry", s.within(s.retry))
	return mux
}

// within is for browsers that have entered the pod's page.
func (s *Site) within(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.login.admitted(r, r.Host) {
			http.Error(w, "log in at "+s.base()+"/pods/", http.StatusUnauthorized)
			return
		}
		h(w, r)
	}
}

// control passes a request on to the pod-api.
func (s *Site) control(w http.ResponseWriter, r *http.Request) { s.proxy(w, r, r.URL.Path) }

// proxy passes a request on to a path of the pod-api, without what is the person's.
func (s *Site) proxy(w http.ResponseWriter, r *http.Request, path string) {
	c, err := s.cfg.Pods.Control(podName(r))
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL = &url.URL{Scheme: "http", Host: "pod", Path: path, RawQuery: r.URL.RawQuery}
			p.Out.Host = "pod"
			for _, name := range []string{"Cookie", "Authorization", "Referer", "Origin"} {
				p.Out.Header.Del(name)
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			resp.Header.Del("Set-Cookie")
			return nil
		},
		Transport: c.Transport(), FlushInterval: -1, BufferPool: podapi.Buffers,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "the pod does not answer: "+err.Error(), http.StatusServiceUnavailable)
		},
	}
	proxy.ServeHTTP(w, r)
}

// maxMessage bounds what a person writes, in bytes.
const maxMessage = 64 << 10

// form reads a request's form, of at most so many bytes, and answers one that is not.
func form(w http.ResponseWriter, r *http.Request, most int64) bool {
	r.Body = http.MaxBytesReader(w, r.Body, most)
	err := r.ParseForm()
	if large := new(http.MaxBytesError); errors.As(err, &large) {
		http.Error(w, fmt.Sprintf("that is more than %d KiB, and is not taken", most>>10), http.StatusRequestEntityTooLarge)
		return false
	}
	if err != nil {
		http.Error(w, "that is no form: "+err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

func (s *Site) retry(w http.ResponseWriter, r *http.Request) {
	err := s.cfg.Pods.Retry(podName(r))
	s.acted(r, "retry", err)
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// acted tells of what a person did.
func (s *Site) acted(r *http.Request, what string, err error) {
	if s.cfg.Acted != nil {
		s.cfg.Acted(podName(r), what, err)
	}
}

// say gives the agent what a person wrote: from the script, or from the form alone.
func (s *Site) say(w http.ResponseWriter, r *http.Request) {
	if !form(w, r, maxMessage) {
		return
	}
	text := strings.TrimSpace(r.PostForm.Get("text"))
	if text == "" {
		http.Error(w, "an empty message is not sent", http.StatusBadRequest)
		return
	}
	c, err := s.cfg.Pods.Control(podName(r))
	if err == nil {
		err = c.Send(r.Context(), text)
	}
	s.acted(r, "message", err)
	if err != nil {
		http.Error(w, "the agent does not have it: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}
