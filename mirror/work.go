package mirror

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// maxDrain is how much of a refused push is read and thrown away, so that git
// gets to the answer instead of a broken connection. Bytes.
const maxDrain = 256 << 20

// maxNegotiation bounds the body of a fetch request, in bytes; a client that
// has a million refs sends about 50 MB.
const maxNegotiation = 128 << 20

// Rules say what one pod may do.
type Rules struct {
	// Repo is the only repository, "owner/name" as on the forge.
	Repo string
	// BranchPrefix is what every pushed branch starts with: "agent/3-".
	BranchPrefix string
}

// Work answers /work/<owner>/<name>.git for pods, out of the forge.
// Its handlers are safe for concurrent use.
type Work struct {
	forge *url.URL
	user  string
	token func() string
	http  *http.Client
	log   *slog.Logger
}

// WorkConfig is what [NewWork] needs.
type WorkConfig struct {
	ForgeURL string        // base URL of the forge
	User     string        // account in whose name pods read and push
	Token    func() string // its token, asked for at each request
	// Transport carries the requests; nil for one of its own. It must hand on
	// bodies as they come, without undoing a compression.
	Transport http.RoundTripper
	Log       *slog.Logger
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
	return &Work{
		forge: u, user: cfg.User, token: cfg.Token, log: cfg.Log,
		http: &http.Client{
			// A redirect would carry the token to wherever the answer says.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport:     cfg.Transport,
		},
	}, nil
}

// Handler serves one pod by rules. It knows three routes of one repository and
// refuses all else.
func (w *Work) Handler(rules Rules) http.Handler {
	base := "/work/" + rules.Repo + ".git"
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+base+"/info/refs", func(rw http.ResponseWriter, r *http.Request) {
		service := r.URL.Query().Get("service")
		if service != "git-upload-pack" && service != "git-receive-pack" {
			refuse(rw, http.StatusForbidden, "devaipod: git's dumb protocol is not served; use git 1.6.6 or newer")
			return
		}
		w.forward(rw, r, rules, "/info/refs?service="+service, nil)
	})
	mux.HandleFunc("POST "+base+"/git-upload-pack", func(rw http.ResponseWriter, r *http.Request) {
		w.forward(rw, r, rules, "/git-upload-pack", http.MaxBytesReader(rw, r.Body, maxNegotiation))
	})
	mux.HandleFunc("POST "+base+"/git-receive-pack", func(rw http.ResponseWriter, r *http.Request) {
		w.receive(rw, r, rules)
	})
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		refuse(rw, http.StatusForbidden, fmt.Sprintf("devaipod: this pod reaches %s alone", base))
	})
	return mux
}

// receive is the gate of pushes (invariant S4, refs).
func (w *Work) receive(rw http.ResponseWriter, r *http.Request, rules Rules) {
	body, err := plainBody(r)
	if err != nil {
		refuse(rw, http.StatusBadRequest, "devaipod: "+err.Error())
		return
	}
	list, err := readCommands(body)
	if err != nil {
		refuse(rw, http.StatusBadRequest, "devaipod: "+err.Error())
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
		r.Header.Del("Content-Encoding") // plainBody has undone it
		r.ContentLength = -1
	}
	w.forward(rw, r, rules, "/git-receive-pack", io.MultiReader(strings.NewReader(string(list.raw)), body))
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
		refuse(rw, http.StatusForbidden, "devaipod: push refused: "+anyOf(reasons))
		return
	}
	var report, messages []byte
	report = appendPktLine(report, "unpack ok\n")
	for _, c := range list.commands {
		why, bad := reasons[c.ref]
		if !bad {
			why = "not pushed, as another ref of the same push was refused"
		} else {
			messages = fmt.Appendf(messages, "devaipod: refused %s: %s\n", printable(c.ref), why)
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

// forward sends the request on to the forge and streams its answer back.
func (w *Work) forward(rw http.ResponseWriter, r *http.Request, rules Rules, suffix string, body io.Reader) {
	target := strings.TrimSuffix(w.forge.String(), "/") + "/" + rules.Repo + ".git" + suffix
	req, err := http.NewRequestWithContext(r.Context(), r.Method, target, body)
	if err != nil {
		refuse(rw, http.StatusInternalServerError, "devaipod: "+err.Error())
		return
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
	resp, err := w.http.Do(req)
	if err != nil {
		if r.Context().Err() == nil {
			w.log.Warn("the forge did not answer git", "repo", rules.Repo, "err", err)
		}
		refuse(rw, http.StatusBadGateway, "devaipod: the forge does not answer; try again in a minute")
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		w.log.Warn("the forge refused git", "repo", rules.Repo, "status", resp.Status)
		refuse(rw, http.StatusBadGateway, fmt.Sprintf("devaipod: the forge answered %d for %s; a person has to look (devaipod forge status)", resp.StatusCode, rules.Repo))
		return
	}
	rw.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	rw.Header().Set("Cache-Control", "no-cache")
	rw.WriteHeader(http.StatusOK)
	if err := stream(rw, resp.Body); err != nil && r.Context().Err() == nil {
		w.log.Warn("answering git", "repo", rules.Repo, "err", err)
		panic(http.ErrAbortHandler) // a cut-off answer must not look whole
	}
}

// stream copies with a flush after each read: git shows progress as it comes.
func stream(rw http.ResponseWriter, r io.Reader) error {
	rc := http.NewResponseController(rw)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := rw.Write(buf[:n]); werr != nil {
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

// plainBody undoes the request's content encoding.
func plainBody(r *http.Request) (io.Reader, error) {
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "":
		return r.Body, nil
	case "gzip", "x-gzip":
		zr, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, fmt.Errorf("reading a compressed push: %w", err)
		}
		return zr, nil
	default:
		return nil, fmt.Errorf("content encoding %.40q is not known", enc)
	}
}

// refuse answers with plain text, which git shows as "remote: …".
func refuse(rw http.ResponseWriter, status int, text string) {
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rw.WriteHeader(status)
	_, _ = io.WriteString(rw, text+"\n") // the client is gone: nobody to tell
}

func anyOf(m map[string]string) string {
	for _, v := range m {
		return v
	}
	return ""
}

// printable drops what a terminal might take as an order.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}
