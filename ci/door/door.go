// Package door is what the job of a workflow reaches beyond its own network, which has
// nothing but localhost: the forge, the git cache, and the hosts on a list. It is an
// [http.Handler] in the service, for the connections that one job makes; what asks may
// be hostile.
//
// A trusted job has the task's own token, and the forge is as open to it as to any other
// runner's job. One that is not trusted has a token that means something here alone: with
// it it reads its own repository, by git and by some of the API, and writes nothing but
// its own run's artifacts.
package door

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"slices"
	"strings"
)

// A Config says what one job may reach.
type Config struct {
	// Forge is its address, Transport carries what goes there, and Here is the address by
	// which the job reaches it, without a slash at its end.
	Forge     *url.URL
	Transport http.RoundTripper
	Here      string
	// Repo is OWNER/NAME of the job's repository.
	Repo string
	// Trusted lets the job's requests pass as they are.
	Trusted bool
	// Given is what a job that is not trusted has in the place of the forge's own tokens:
	// the task's, and the one for its artifacts; there with something and a dot before it.
	Given          string
	Token, Runtime string
	// Git serves /git/HOST/OWNER/NAME.git, read-only; Proxy the requests to other hosts;
	// Cache, which may be nil, the job's cache of Actions, /_apis/artifactcache/.
	Git, Proxy, Cache http.Handler
	Log               *slog.Logger
}

// New returns the handler; it is safe for concurrent use.
func New(cfg Config) http.Handler {
	d := &door{cfg: cfg}
	d.forge = &httputil.ReverseProxy{
		Rewrite:        d.rewrite,
		Transport:      cfg.Transport,
		ModifyResponse: d.answered,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				cfg.Log.Info("a job's request to the forge", "path", r.URL.Path, "err", err)
			}
			http.Error(w, "the forge does not answer; try again", http.StatusBadGateway)
		},
		ErrorLog:      slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		FlushInterval: -1, // git and logs come as they are made
	}
	return d
}

type door struct {
	cfg   Config
	forge *httputil.ReverseProxy
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	local := strings.EqualFold(r.URL.Host, d.cfg.Forge.Host) // by a program that asks its proxy for it
	switch {
	case r.Method == http.MethodConnect || r.URL.IsAbs() && !local:
		d.cfg.Proxy.ServeHTTP(w, r)
	case !plain(r.URL):
		http.Error(w, "the path is not plain", http.StatusBadRequest)
	case strings.HasPrefix(r.URL.Path, "/git/") && r.Host != d.cfg.Forge.Host && !local:
		d.cfg.Git.ServeHTTP(w, withoutCredentials(r))
	case strings.HasPrefix(r.URL.Path, "/_apis/artifactcache/") && d.cfg.Cache != nil: // no owner's name has that
		d.cfg.Cache.ServeHTTP(w, r)
	case d.cfg.Trusted:
		d.forge.ServeHTTP(w, r)
	default:
		d.guarded(w, r)
	}
}

// plain tells whether a path means to every server what it does to us.
func plain(u *url.URL) bool {
	p := u.Path
	return u.RawPath == "" && strings.HasPrefix(p, "/") && !strings.ContainsAny(p, "\\\x00;") &&
		(path.Clean(p) == p || path.Clean(p)+"/" == p)
}

func withoutCredentials(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	r.Header.Del("Authorization")
	r.Header.Del("Cookie")
	return r
}

// guarded lets pass what a job that is not trusted may ask of the forge.
func (d *door) guarded(w http.ResponseWriter, r *http.Request) {
	err := d.may(r)
	if err != nil {
		d.cfg.Log.Info("a job's request to the forge is refused", "method", r.Method, "path", r.URL.Path, "why", err)
		http.Error(w, fmt.Sprintf("%v: this job runs without secrets and without a token that may write, since an agent has made its commit; approve the commit to run it with them", err), http.StatusForbidden)
		return
	}
	if !d.swap(r) {
		http.Error(w, "this token is not the job's", http.StatusUnauthorized)
		return
	}
	d.forge.ServeHTTP(w, r)
}

// readable are the parts of a repository's API that may be read.
var readable = []string{
	"archive", "branches", "commits", "compare", "contents", "git", "languages", "media", "pulls",
	"raw", "releases", "statuses", "tags", "topics",
}

// artifacts is where artifacts are sent and read, by a token that is good for one run:
// by clients of version 3, and of version 4.
var artifacts = []string{"/api/actions_pipeline/_apis/pipelines/workflows/", "/twirp/github.actions.results.api.v1.ArtifactService/"}

func ofArtifacts(p string) bool {
	return slices.ContainsFunc(artifacts, func(prefix string) bool { return strings.HasPrefix(p, prefix) })
}

// may tells why a request may not be made.
func (d *door) may(r *http.Request) error {
	if r.Header.Get("Upgrade") != "" {
		return errors.New("no other protocol is spoken here")
	}
	p := r.URL.Path
	if ofArtifacts(p) {
		return nil
	}
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if reads && p == "/api/v1/version" {
		return nil
	}
	if rest, ok := d.own(p, "/api/v1/repos/"); ok {
		first, _, _ := strings.Cut(rest, "/")
		if reads && (rest == "" || slices.Contains(readable, first)) {
			return nil
		}
		return fmt.Errorf("%s of this part of the API is not for it", r.Method)
	}
	rest, ok := d.own(p, "/")
	if !ok {
		return errors.New("it may read its own repository and nothing else")
	}
	return d.mayGit(r, rest, reads)
}

// mayGit is may for git's HTTP and that of LFS.
func (d *door) mayGit(r *http.Request, rest string, reads bool) error {
	q := r.URL.Query()
	switch {
	case rest == "info/refs" && reads && len(q) == 1 && slices.Equal(q["service"], []string{"git-upload-pack"}):
		return nil
	case rest == "git-upload-pack" && r.Method == http.MethodPost:
		return nil
	case strings.HasPrefix(rest, "info/lfs/objects/") && reads:
		return nil
	case rest == "info/lfs/objects/batch" && r.Method == http.MethodPost:
		return downloads(r)
	case strings.HasPrefix(rest, "archive/") && reads, strings.HasPrefix(rest, "raw/") && reads:
		return nil
	}
	return errors.New("it may read its own repository by git, and nothing else of it")
}

// own is what follows the job's repository in a path. The forge does not tell upper from
// lower case in names.
func (d *door) own(p, prefix string) (rest string, ok bool) {
	p, ok = strings.CutPrefix(p, prefix)
	if !ok || len(p) < len(d.cfg.Repo) || !strings.EqualFold(p[:len(d.cfg.Repo)], d.cfg.Repo) {
		return "", false
	}
	p = strings.TrimPrefix(p[len(d.cfg.Repo):], ".git")
	return strings.TrimPrefix(p, "/"), p == "" || p[0] == '/'
}

// downloads tells whether a batch of LFS asks for downloads:
// git-lfs, docs/api/batch.md.
func downloads(r *http.Request) error {
	const most = 1 << 20
	body, err := io.ReadAll(io.LimitReader(r.Body, most+1))
	if err != nil || len(body) > most {
		return errors.New("its list of LFS objects can't be read")
	}
	var m map[string]json.RawMessage
	var operation string
	if json.Unmarshal(body, &m) != nil || json.Unmarshal(m["operation"], &operation) != nil || operation != "download" {
		return errors.New("it may download LFS objects, and upload none")
	}
	for name := range m {
		if name != "operation" && strings.EqualFold(name, "operation") {
			return errors.New("its list of LFS objects has two operations")
		}
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.TransferEncoding = nil
	return nil
}

// swap puts the real token in the place of the job's. A request without one stays so;
// with another it is none of the job's.
func (d *door) swap(r *http.Request) bool {
	r.Header.Del("Cookie")
	if q := r.URL.Query(); q.Has("token") || q.Has("access_token") {
		return false
	}
	given := r.Header.Values("Authorization")
	if len(given) == 0 {
		return true
	}
	scheme, token, ok := strings.Cut(given[0], " ")
	if len(given) > 1 || !ok {
		return false
	}
	if strings.EqualFold(scheme, "basic") {
		user, password, ok := r.BasicAuth()
		if !ok {
			return false
		}
		switch {
		case d.given(password):
			r.SetBasicAuth(user, d.real(r))
		case d.given(user) && (password == "" || password == "x-oauth-basic"):
			r.SetBasicAuth(d.real(r), password)
		default:
			return false
		}
		return true
	}
	if !d.given(strings.TrimSpace(token)) {
		return false
	}
	r.Header.Set("Authorization", scheme+" "+d.real(r))
	return true
}

func (d *door) given(token string) bool {
	token = token[strings.LastIndexByte(token, '.')+1:]
	return d.cfg.Given != "" && subtle.ConstantTimeCompare([]byte(d.cfg.Given), []byte(token)) == 1
}

// real is the token that the forge wants to see.
func (d *door) real(r *http.Request) string {
	if ofArtifacts(r.URL.Path) {
		return d.cfg.Runtime
	}
	return d.cfg.Token
}

// rewrite sends a request to the forge.
func (d *door) rewrite(p *httputil.ProxyRequest) {
	p.SetURL(d.cfg.Forge)
	p.Out.Host = d.cfg.Forge.Host
	p.Out.Header.Del("Cookie")
}

// maxAnswer is how long an answer about artifacts may be in which addresses are changed, bytes.
const maxAnswer = 8 << 20

// answered takes cookies out of what the forge answers, and puts the door in the place of
// the forge in the addresses that it names for artifacts: those of version 3 and of version
// 4 are sent where an earlier answer says.
func (d *door) answered(r *http.Response) error {
	r.Header.Del("Set-Cookie")
	forge, p := strings.TrimSuffix(d.cfg.Forge.String(), "/"), strings.TrimPrefix(r.Request.URL.Path, strings.TrimSuffix(d.cfg.Forge.Path, "/"))
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	file := strings.HasSuffix(p, "/download") || strings.HasSuffix(p, "/DownloadArtifact")
	if d.cfg.Here == forge || kind != "application/json" || !ofArtifacts(p) || file {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer+1))
	if err = errors.Join(err, r.Body.Close()); err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	if err != nil {
		return err
	}
	body = bytes.ReplaceAll(body, []byte(`"`+forge+"/"), []byte(`"`+d.cfg.Here+"/"))
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Length", fmt.Sprint(len(body)))
	return nil
}
