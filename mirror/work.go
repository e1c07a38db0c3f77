package mirror

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/smarthttp"
)

// maxDrain is how much of a refused push is read and thrown away, so that git
// gets to the answer instead of a broken connection. Bytes.
const maxDrain = 256 << 20

// Rules say what one pod may do.
type Rules struct {
	// Repo is the only repository, "owner/name" as on the forge.
	Repo string
	// BranchPrefix is what every pushed branch starts with: "agent/3-".
	BranchPrefix string
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
	Log  *slog.Logger
}

// NewWork checks cfg and returns an endpoint. It makes no call.
func NewWork(cfg WorkConfig) (*Work, error) {
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
	return &Work{
		forge: u, user: cfg.User, token: cfg.Token, wait: cfg.Wait, log: cfg.Log,
		http: &http.Client{
			// A redirect would carry the token to wherever the answer says.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport:     cfg.Transport,
		},
	}, nil
}

// Handler serves one pod by rules. It knows one repository, which reads answers
// for where the pod fetches, and refuses all else.
func (w *Work) Handler(rules Rules, reads http.Handler) http.Handler {
	base := "/work/" + rules.Repo + ".git"
	at := &place{repo: rules.Repo}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+base+"/info/refs", func(rw http.ResponseWriter, r *http.Request) {
		const push = "git-receive-pack"
		if r.URL.Query().Get("service") != push {
			reads.ServeHTTP(rw, r)
			return
		}
		w.forward(rw, r, at, "/info/refs?service="+push, nil)
	})
	mux.Handle("POST "+base+"/git-upload-pack", reads)
	mux.HandleFunc("POST "+base+"/git-receive-pack", func(rw http.ResponseWriter, r *http.Request) {
		w.receive(rw, r, rules, at)
	})
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		smarthttp.Refuse(rw, http.StatusForbidden, fmt.Sprintf("devaipod: this pod reaches %s alone", base))
	})
	return mux
}

// receive is the gate of pushes (invariant S4, refs).
func (w *Work) receive(rw http.ResponseWriter, r *http.Request, rules Rules, at *place) {
	body, err := smarthttp.Plain(r, r.Body)
	if err != nil {
		smarthttp.Refuse(rw, http.StatusBadRequest, "devaipod: "+err.Error())
		return
	}
	list, err := readCommands(body)
	if err != nil {
		smarthttp.Refuse(rw, http.StatusBadRequest, "devaipod: "+err.Error())
		return
	}
	if reasons := rules.check(list); len(reasons) > 0 {
		for ref, why := range reasons {
			w.log.Warn("push refused", "repo", rules.Repo, "ref", ref, "why", why)
		}
		if _, err := io.Copy(io.Discard, io.LimitReader(body, maxDrain)); err != nil {
			w.log.Debug("reading the rest of a refused push", "repo", rules.Repo, "err", err)
		}
		answerRefused(rw, list, reasons)
		return
	}
	if r.Header.Get("Content-Encoding") != "" {
		r.Header.Del("Content-Encoding") // undone above
		r.ContentLength = -1
	}
	w.forward(rw, r, at, "/git-receive-pack", io.MultiReader(strings.NewReader(string(list.raw)), body))
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
	return ""
}

// answerRefused reports each ref as git's receive-pack would, and says the
// reasons once more in full as remote messages.
func answerRefused(rw http.ResponseWriter, list *commandList, reasons map[string]string) {
	if !list.caps["report-status"] && !list.caps["report-status-v2"] {
		smarthttp.Refuse(rw, http.StatusForbidden, "devaipod: push refused: "+anyOf(reasons))
		return
	}
	var report, messages []byte
	report = appendPktLine(report, "unpack ok\n")
	for _, c := range list.commands {
		why, bad := reasons[c.ref]
		if !bad {
			why = "not pushed, as another ref of the same push was refused"
		} else {
			messages = fmt.Appendf(messages, "devaipod: refused %s: %s\n", smarthttp.Printable(c.ref), why)
		}
		report = appendPktLine(report, fmt.Sprintf("ng %s %s\n", c.ref, why))
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
// forge that is away, and learns where a renamed repository is now.
func (w *Work) askFirst(r *http.Request, at *place, suffix string) (*http.Response, error) {
	moves := 0
	for end := time.Now().Add(w.wait); ; {
		resp, err := w.ask(r, at.get(), suffix, nil)
		if err == nil && resp.StatusCode/100 == 3 && moves < 3 {
			moves++
			if repo, ok := w.movedTo(resp, suffix); ok && repo != at.get() {
				w.log.Info("the repository was renamed", "from", at.get(), "to", repo)
				at.set(repo)
				if err := resp.Body.Close(); err != nil {
					return nil, err
				}
				continue
			}
		}
		if err == nil || r.Context().Err() != nil || time.Now().After(end) {
			return resp, err
		}
		select {
		case <-r.Context().Done():
		case <-time.After(min(time.Second, w.wait/10)):
		}
	}
}

// movedTo reads which repository of this forge a redirect leads to.
func (w *Work) movedTo(resp *http.Response, suffix string) (repo string, ok bool) {
	to, err := resp.Location()
	if err != nil {
		return "", false
	}
	rest, within := strings.CutPrefix(to.String(), strings.TrimSuffix(w.forge.String(), "/")+"/")
	repo, git := strings.CutSuffix(rest, suffix)
	repo = strings.TrimSuffix(repo, ".git")
	return repo, within && git && strings.Count(repo, "/") == 1
}

// forward sends the request on to the forge and streams its answer back.
func (w *Work) forward(rw http.ResponseWriter, r *http.Request, at *place, suffix string, body io.Reader) {
	var resp *http.Response
	var err error
	if body == nil {
		resp, err = w.askFirst(r, at, suffix)
	} else if err = smarthttp.Duplex(rw); err == nil {
		resp, err = w.ask(r, at.get(), suffix, body)
	}
	repo := at.get()
	if err != nil {
		if r.Context().Err() == nil {
			w.log.Warn("the forge did not answer git", "repo", repo, "err", err)
		}
		smarthttp.Refuse(rw, http.StatusBadGateway, "devaipod: the forge does not answer; try again in a minute")
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

func anyOf(m map[string]string) string {
	for _, v := range m {
		return v
	}
	return ""
}
