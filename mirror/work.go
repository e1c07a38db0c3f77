package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
	"codeberg.org/devaipod/devaipod/mirror/smarthttp"
)

// maxDrain is how much of a refused push is read and thrown away, so that git
// gets to the answer instead of a broken connection. Bytes.
const maxDrain = 8 << 30

// Rules say what one pod may do.
type Rules struct {
	// Repo is the only repository, "owner/name" as the pod calls it, and RepoID
	// its number on the forge, by which it is found when it was renamed.
	Repo   string
	RepoID int64
	// BranchPrefix is what every pushed branch starts with: "agent/3-".
	BranchPrefix string
	// Reviewed tells the commit that people have been shown for review last, "" for none. A
	// branch that has it is only added to; nil for none.
	Reviewed func() (string, error)
	// Pusher tells who pushes now, to be recorded.
	Pusher func() Pusher
	// Lifts asks what trusted people allow this issue's agent to push for once;
	// nil for nothing. It is asked when a push needs it.
	Lifts func(ctx context.Context) ([]Lift, error)
}

// A Lift is a trusted person's permission to change one path in one push.
type Lift struct {
	ID   string // of the permission, part of a ref's name
	Path string
}

// A Pusher is who pushes, as [Provenance] keeps it.
type Pusher struct {
	Pod   string `json:"pod"`
	Issue string `json:"issue"` // "owner/name#3"
	Task  string `json:"task"`  // the hash of the text that it was started for
	Agent string `json:"agent"`
	Model string `json:"model"`
	// Tokens are what the issue's agents have used of models so far.
	Tokens int64 `json:"tokens"`
}

// A Provenance is the git note of a pushed commit, one JSON object a line.
type Provenance struct {
	Pusher
	At time.Time `json:"at"`
}

// Work answers /work/<owner>/<name>.git for pods: what they push goes to the
// forge. Its handlers are safe for concurrent use.
type Work struct {
	forge *url.URL
	user  string
	token func() string
	wait  time.Duration
	http  *http.Client
	log   *slog.Logger

	dir       string
	known     func(ctx context.Context, repo string) (string, error)
	copy      func(repo string, id int64) (string, bool)
	name      func(ctx context.Context, id int64) (string, error)
	limits    Limits
	box       gitproc.Box
	protected protected
	delivered func(Delivery)
	refused   func(d Delivery, why string)

	locks sync.Map // of *sync.Mutex, by repository
	// underWay has what pushes are about to bring to the forge.
	underWay sync.Map
	kicked   chan struct{}
}

// WorkConfig is what [NewWork] needs.
type WorkConfig struct {
	ForgeURL string        // base URL of the forge
	User     string        // account in whose name pods push
	Token    func() string // its token, asked for at each request
	// Transport carries the requests; nil for one of its own. It must hand on
	// bodies as they come, without undoing a compression.
	Transport http.RoundTripper
	// Wait is how long git waits for a forge that does not answer, as while it is
	// started again; a minute when 0.
	Wait time.Duration

	// Dir is where the work store is.
	Dir string
	// Known brings the cache's copy of a repository up to date and returns its
	// directory. A forge that is away is no error while there is a copy.
	Known func(ctx context.Context, repo string) (dir string, err error)
	// Copy is the cache's copy of a repository as it is, if there is one. Pods fetch
	// out of the cache, so what they build on is there.
	Copy func(repo string, id int64) (dir string, ok bool)
	// Name asks what a repository is called now; [ErrGone] when there is none.
	Name func(ctx context.Context, id int64) (repo string, err error)
	// Launcher is the command that puts git into a box ([gitproc.Enter]).
	Launcher []string
	Limits   Limits
	// Protected are the paths that an agent must not change: directories where
	// they end with a slash, else files.
	Protected []string
	// Delivered is told of what came to the forge; nil for nobody.
	Delivered func(Delivery)
	// Refused is told of what the gate did not let through, and why, in words that a pod may
	// have a part in; nil for nobody.
	Refused func(d Delivery, why string)
	Log     *slog.Logger
}

// A Delivery is what one push brought to the forge, or would have.
type Delivery struct {
	Repo string // owner/name
	// Issue and Agent are who pushed; "" for what waited for a forge that was away.
	Issue, Agent string
	Refs         []string // each with its commit: "refs/heads/… 0123…"
	Lifts        []string // paths that a trusted person's permission was used up for
}

// ErrGone is for a repository that the forge has no more.
var ErrGone = errors.New("the forge has no such repository")

// NewWork checks cfg, removes what a killed process left of pushes and returns an
// endpoint. It makes no call. One process at a time may use a directory.
func NewWork(cfg WorkConfig) (*Work, error) {
	if cfg.Dir == "" || cfg.Known == nil || cfg.Copy == nil || cfg.Name == nil || len(cfg.Launcher) == 0 || cfg.Log == nil {
		return nil, errors.New("mirror: Dir, Known, Copy, Name, Launcher and Log must be set")
	}
	u, err := url.Parse(cfg.ForgeURL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("forge URL %q: want http://HOST or https://HOST", cfg.ForgeURL)
	}
	if cfg.Transport == nil {
		cfg.Transport = &http.Transport{
			DisableCompression:    true,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       time.Minute,
			ResponseHeaderTimeout: 10 * time.Minute, // receive-pack answers when it is done
		}
	}
	if cfg.Wait == 0 {
		cfg.Wait = time.Minute
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the work store: %w", err)
	}
	if cfg.Delivered == nil {
		cfg.Delivered = func(Delivery) {}
	}
	if cfg.Refused == nil {
		cfg.Refused = func(Delivery, string) {}
	}
	w := &Work{
		delivered: cfg.Delivered, refused: cfg.Refused, forge: u, user: cfg.User, token: cfg.Token, wait: cfg.Wait, log: cfg.Log,
		dir: cfg.Dir, known: cfg.Known, copy: cfg.Copy, name: cfg.Name, limits: cfg.Limits, box: cfg.Limits.box(cfg.Launcher), protected: cfg.Protected,
		kicked: make(chan struct{}, 1),
		http: &http.Client{
			// A redirect would carry the token to wherever the answer says.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport:     cfg.Transport,
		},
	}
	return w, w.sweep()
}

// Handler serves one pod by rules. It knows one repository, which reads answers
// for where the pod fetches, under the name that it has now, and refuses all
// else.
func (w *Work) Handler(rules Rules, reads func(repo string) http.Handler) http.Handler {
	base := "/work/" + rules.Repo + ".git"
	at := &place{repo: rules.Repo}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+base+"/info/refs", func(rw http.ResponseWriter, r *http.Request) {
		const push = "git-receive-pack"
		if r.URL.Query().Get("service") == push {
			w.advertise(rw, r, rules, at)
			return
		}
		if err := w.find(r.Context(), rules.RepoID, at); err != nil {
			refuseGone(rw, rules, err)
			return
		}
		reads(at.get()).ServeHTTP(rw, r)
	})
	mux.HandleFunc("POST "+base+"/git-upload-pack", func(rw http.ResponseWriter, r *http.Request) {
		reads(at.get()).ServeHTTP(rw, r)
	})
	mux.HandleFunc("POST "+base+"/git-receive-pack", func(rw http.ResponseWriter, r *http.Request) {
		w.receive(rw, r, rules, at)
	})
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		smarthttp.Refuse(rw, http.StatusForbidden, fmt.Sprintf("devaipod: this pod reaches %s alone", base))
	})
	return mux
}

func refuseGone(rw http.ResponseWriter, rules Rules, err error) {
	smarthttp.Refuse(rw, http.StatusNotFound, fmt.Sprintf("devaipod: %s: %s", rules.Repo, err))
}

// find learns what the repository is called now. A forge that is away leaves the
// name that was known last.
func (w *Work) find(ctx context.Context, id int64, at *place) error {
	repo, err := w.name(ctx, id)
	if errors.Is(err, ErrGone) {
		return err
	}
	if err != nil {
		w.log.Debug("asking what a repository is called", "repo", at.get(), "err", err)
		return nil
	}
	if repo != at.get() {
		w.log.Info("the repository was renamed", "from", at.get(), "to", repo)
		at.set(repo)
	}
	return nil
}

// receive is the gate of pushes (invariant S4): refs here, the rest in [push].
func (w *Work) receive(rw http.ResponseWriter, r *http.Request, rules Rules, at *place) {
	list, body, ok := readPush(rw, r)
	if !ok {
		return
	}
	if reasons := rules.check(list); len(reasons) > 0 {
		for ref, why := range reasons {
			w.log.Warn("push refused", "repo", rules.Repo, "ref", ref, "why", why)
		}
		w.refused(rules.delivery(at.get(), list, nil), anyOf(reasons))
		w.refuse(rw, list, body, reasons, nil)
		return
	}
	if r.Header.Get("Content-Encoding") != "" {
		r.Header.Del("Content-Encoding") // undone above
		r.ContentLength = -1
	}
	(&push{w: w, rules: rules, at: at, list: list, rw: rw, r: r}).run(body)
}

// readPush reads the head of a push, and leaves its pack in body. When ok is false
// the client has its answer.
func readPush(rw http.ResponseWriter, r *http.Request) (list *commandList, body io.Reader, ok bool) {
	body, err := smarthttp.Plain(r, r.Body)
	if err == nil {
		list, err = readCommands(body)
	}
	if err != nil {
		smarthttp.Refuse(rw, http.StatusBadRequest, "devaipod: "+err.Error())
		return nil, nil, false
	}
	if len(list.commands) == 0 { // git asks whether it may push at all
		rw.Header().Set("Content-Type", "application/x-git-receive-pack-result")
		return nil, nil, false
	}
	return list, body, true
}

// refuse answers a push that is not taken, once the rest of it is read: git reads
// no answer before it has sent all.
func (w *Work) refuse(rw http.ResponseWriter, list *commandList, body io.Reader, reasons map[string]string, more []string) {
	if _, err := io.Copy(io.Discard, io.LimitReader(body, maxDrain)); err != nil {
		w.log.Debug("reading the rest of a refused push", "err", err)
	}
	answer(rw, list, reasons, more)
}

// delivery is what of a push would come, or came, to the forge: the refs that may choose, all
// where it is nil.
func (rules Rules) delivery(repo string, list *commandList, may map[string]bool) Delivery {
	d := Delivery{Repo: repo}
	if rules.Pusher != nil {
		who := rules.Pusher()
		d.Issue, d.Agent = who.Issue, who.Agent
	}
	for _, c := range list.commands {
		if may == nil || may[c.ref] {
			d.Refs = append(d.Refs, c.ref+" "+c.new)
		}
	}
	return d
}

// check returns why each ref is refused; none when the whole push may pass.
func (rules Rules) check(list *commandList) map[string]string {
	reasons := map[string]string{}
	for _, c := range list.commands {
		if why := rules.refusal(c); why != "" {
			reasons[c.ref] = why
		}
	}
	if list.caps["push-options"] {
		// The forge takes orders by push option (a repository's visibility).
		for _, c := range list.commands {
			reasons[c.ref] = "push options are not taken from a pod; push again without -o"
		}
	}
	return reasons
}

func (rules Rules) refusal(c command) string {
	branch, ok := strings.CutPrefix(c.ref, "refs/heads/")
	rest, within := strings.CutPrefix(branch, rules.BranchPrefix)
	switch {
	case !ok || !within || rest == "":
		return fmt.Sprintf("this pod may push only to branches named %s*; push HEAD:refs/heads/%swork instead", rules.BranchPrefix, rules.BranchPrefix)
	case !validRef(c.ref):
		return "not a valid branch name (git check-ref-format)"
	case c.deletes():
		return "a pod may not delete branches; push a new commit instead"
	}
	if why := tricky(branch); why != "" {
		return why + "; push to a branch with a plain name"
	}
	return ""
}

// answer reports each ref as git's receive-pack would, all taken when there are no
// reasons, and says these once more in full as remote messages, and after them
// more lines.
func answer(rw http.ResponseWriter, list *commandList, reasons map[string]string, more []string) {
	if !list.caps["report-status"] && !list.caps["report-status-v2"] {
		smarthttp.Refuse(rw, http.StatusForbidden, "devaipod: push refused: "+anyOf(reasons))
		return
	}
	var report, messages []byte
	report = appendPktLine(report, "unpack ok\n")
	for _, c := range list.commands {
		why, bad := reasons[c.ref]
		if len(reasons) == 0 {
			report = appendPktLine(report, "ok "+c.ref+"\n")
			continue
		}
		if !bad {
			why = "not pushed, as another ref of the same push was refused"
		} else {
			messages = fmt.Appendf(messages, "devaipod: refused %s: %s\n", gitproc.Printable(c.ref), gitproc.Printable(why))
		}
		report = appendPktLine(report, fmt.Sprintf("ng %s %s\n", c.ref, gitproc.Printable(why)))
	}
	for _, line := range more {
		messages = fmt.Appendf(messages, "  %s\n", gitproc.Printable(line))
	}
	report = append(report, "0000"...)

	rw.Header().Set("Content-Type", "application/x-git-receive-pack-result")
	rw.Header().Set("Cache-Control", "no-cache")
	if !list.caps["side-band-64k"] {
		_, _ = rw.Write(report) // the client is gone: nobody to tell
		return
	}
	var out []byte
	for _, band := range []struct {
		id   byte
		data []byte
	}{{2, messages}, {1, report}} {
		for data := band.data; len(data) > 0; {
			n := min(len(data), 65515)
			out = appendPktLine(out, string(band.id)+string(data[:n]))
			data = data[n:]
		}
	}
	_, _ = rw.Write(append(out, "0000"...)) // as above
}

// A place is where on the forge a pod's repository is: another than the pod
// calls it where it was renamed.
type place struct {
	mu   sync.Mutex
	repo string
}

func (p *place) get() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.repo
}

func (p *place) set(repo string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.repo = repo
}

// ask sends a request to the forge.
func (w *Work) ask(r *http.Request, repo, suffix string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, strings.TrimSuffix(w.forge.String(), "/")+"/"+repo+".git"+suffix, body)
	if err != nil {
		return nil, err
	}
	for _, h := range []string{"Content-Type", "Content-Encoding", "Accept", "Git-Protocol"} {
		if v := r.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	if body != nil {
		req.ContentLength = r.ContentLength
	}
	req.Header.Set("User-Agent", "git/2 (devaipod)")
	req.SetBasicAuth(w.user, w.token())
	return w.http.Do(req)
}

// askFirst sends git's first question, which can be sent again: it waits for a
// forge that is away.
func (w *Work) askFirst(r *http.Request, repo, suffix string) (*http.Response, error) {
	for end := time.Now().Add(w.wait); ; {
		resp, err := w.ask(r, repo, suffix, nil)
		if err == nil || r.Context().Err() != nil || time.Now().After(end) {
			return resp, err
		}
		select {
		case <-r.Context().Done():
		case <-time.After(min(time.Second, w.wait/10)):
		}
	}
}

// advertise tells a client what it may push onto: what the forge says, or, while
// that is away, what is known of it.
func (w *Work) advertise(rw http.ResponseWriter, r *http.Request, rules Rules, at *place) {
	const question = "/info/refs?service=git-receive-pack"
	found := make(chan error, 1)
	go func() { found <- w.find(r.Context(), rules.RepoID, at) }()
	asked := at.get()
	resp, err := w.askFirst(r, asked, question)
	gone := <-found
	repo := at.get()
	if err == nil && (gone != nil || repo != asked) { // not the one that the pod is for
		err = resp.Body.Close()
		if gone == nil && err == nil {
			resp, err = w.askFirst(r, repo, question)
		}
	}
	if gone != nil {
		refuseGone(rw, rules, gone)
		return
	}
	if err != nil {
		if r.Context().Err() == nil {
			w.log.Warn("the forge did not answer git", "repo", repo, "err", err)
			w.advertiseKnown(rw, r, rules, at)
		}
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		w.log.Warn("the forge refused git", "repo", repo, "status", resp.Status)
		smarthttp.Refuse(rw, http.StatusBadGateway, fmt.Sprintf("devaipod: the forge answered %d for %s; a person has to look (devaipod forge status)", resp.StatusCode, repo))
		return
	}
	rw.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	rw.Header().Set("Cache-Control", "no-cache")
	rw.WriteHeader(http.StatusOK)
	if err := smarthttp.Stream(rw, resp.Body); err != nil && r.Context().Err() == nil {
		w.log.Warn("answering git", "repo", repo, "err", err)
		panic(http.ErrAbortHandler) // a cut-off answer must not look whole
	}
}

// advertiseKnown tells the refs of the cache's copy, and what waits for the forge.
func (w *Work) advertiseKnown(rw http.ResponseWriter, r *http.Request, rules Rules, at *place) {
	known, err := w.known(r.Context(), at.get())
	if err != nil {
		smarthttp.Refuse(rw, http.StatusBadGateway, "devaipod: the forge does not answer; try again in a minute")
		return
	}
	lines, format, err := w.knownRefs(r.Context(), rules, known)
	if err != nil {
		w.log.Warn("telling what is known of a repository", "repo", at.get(), "err", err)
		smarthttp.Refuse(rw, http.StatusInternalServerError, "devaipod: the forge does not answer, and what is known of it can't be read; try again in a minute")
		return
	}
	tellRefs(rw, lines, format, "")
}

// knownRefs lists them as they are advertised.
func (w *Work) knownRefs(ctx context.Context, rules Rules, known string) (lines []string, format string, err error) {
	if format, err = objectFormat(ctx, known); err != nil {
		return nil, "", err
	}
	s, err := w.openStore(ctx, rules.RepoID, known, format)
	if err != nil {
		return nil, "", err
	}
	found, err := refs(ctx, known, "refs/heads/", "refs/tags/")
	if err != nil {
		return nil, "", err
	}
	waiting, err := refs(ctx, s.dir, pending)
	if err != nil {
		return nil, "", err
	}
	all := map[string]string{}
	for _, r := range found {
		all[r.name] = r.id
	}
	for _, r := range waiting {
		all["refs/"+strings.TrimPrefix(r.name, pending)] = r.id
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		lines = append(lines, all[name]+" "+name)
	}
	return lines, format, nil
}

func anyOf(m map[string]string) string {
	for _, v := range m {
		return v
	}
	return ""
}
