package door_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/door"
)

const (
	job  = "token-of-the-job"
	real = "token-of-the-forge"

	runtime = "token-of-artifacts"
)

// served is a door, with all that is behind it: each says what it was asked.
func served(t *testing.T, trusted bool) *httptest.Server {
	t.Helper()
	says := func(who string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "a"})
			fmt.Fprintf(w, "%s %s %s auth=%s cookie=%s body=%s", who, r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"), r.Header.Get("Cookie"), body)
		})
	}
	forge := httptest.NewServer(says("forge"))
	t.Cleanup(forge.Close)
	u, err := url.Parse(forge.URL)
	if err != nil {
		t.Fatal(err)
	}
	d := httptest.NewServer(door.New(door.Config{
		Forge: u, Transport: http.DefaultTransport, Repo: "Ada/app", Trusted: trusted, Given: job, Token: real, Runtime: runtime,
		Git: says("git"), Proxy: says("proxy"), Cache: says("cache"), Log: slog.New(slog.DiscardHandler),
	}))
	t.Cleanup(d.Close)
	return d
}

func ask(t *testing.T, d *httptest.Server, method, path, auth, body string) (code int, text string) {
	t.Helper()
	c, err := net.Dial("tcp", d.Listener.Addr().String()) // so that the path is sent as it is
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if auth != "" {
		auth = "Authorization: " + auth + "\r\n"
	}
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: door\r\nCookie: session=mine\r\nContent-Length: %d\r\n%s\r\n%s", method, path, len(body), auth, body)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if c := res.Header.Get("Set-Cookie"); c != "" && strings.HasPrefix(string(b), "forge") {
		t.Errorf("%s: sets a cookie", path)
	}
	return res.StatusCode, string(b)
}

func TestWhatAJobThatIsNotTrustedMayAsk(t *testing.T) {
	t.Parallel()
	d := served(t, false)
	batch := func(operation string) string { return `{"operation":"` + operation + `","objects":[]}` }
	for _, c := range []struct {
		name, method, path, auth, body string
		code                           int
	}{
		{"git lists", "GET", "/ada/app.git/info/refs?service=git-upload-pack", "token " + job, "", 200},
		{"git lists without .git", "GET", "/ada/app/info/refs?service=git-upload-pack", "", "", 200},
		{"git fetches", "POST", "/Ada/App.git/git-upload-pack", "Basic " + basic("x:"+job), "0000", 200},
		{"git lists to push", "GET", "/ada/app.git/info/refs?service=git-receive-pack", "token " + job, "", 403},
		{"git lists for two things", "GET", "/ada/app.git/info/refs?service=git-upload-pack&service=git-receive-pack", "token " + job, "", 403},
		{"git pushes", "POST", "/ada/app.git/git-receive-pack", "token " + job, "", 403},
		{"another's repository", "GET", "/bob/app.git/info/refs?service=git-upload-pack", "token " + job, "", 403},
		{"one with a longer name", "GET", "/ada/apple.git/info/refs?service=git-upload-pack", "token " + job, "", 403},
		{"by dots", "GET", "/ada/app/../../bob/app.git/info/refs?service=git-upload-pack", "token " + job, "", 400},
		{"by dots that are encoded", "GET", "/ada/app/%2e%2e/%2e%2e/bob/app.git/info/refs?service=git-upload-pack", "token " + job, "", 400},
		{"by a slash that is encoded", "GET", "/api/v1/repos/ada/app%2F..%2F..%2Fbob/app/contents", "token " + job, "", 400},
		{"by two slashes", "GET", "//ada/app.git/info/refs?service=git-upload-pack", "token " + job, "", 400},
		{"LFS downloads", "POST", "/ada/app.git/info/lfs/objects/batch", "token " + job, batch("download"), 200},
		{"LFS uploads", "POST", "/ada/app.git/info/lfs/objects/batch", "token " + job, batch("upload"), 403},
		{"LFS with two operations", "POST", "/ada/app.git/info/lfs/objects/batch", "token " + job, `{"operation":"download","Operation":"upload"}`, 403},
		{"LFS with the other one last", "POST", "/ada/app.git/info/lfs/objects/batch", "token " + job, `{"operation":"download","operation":"upload"}`, 403},
		{"LFS puts", "PUT", "/ada/app.git/info/lfs/objects/abc/1", "token " + job, "", 403},
		{"LFS with a long list", "POST", "/ada/app.git/info/lfs/objects/batch", "token " + job, batch(strings.Repeat("x", 2<<20)), 403},
		{"LFS locks", "POST", "/ada/app.git/info/lfs/locks", "token " + job, "{}", 403},
		{"the API reads a file", "GET", "/api/v1/repos/ada/app/contents/a.txt?ref=main", "token " + job, "", 200},
		{"the API reads the repository", "GET", "/api/v1/repos/ada/app", "bearer " + job, "", 200},
		{"the API reads hooks", "GET", "/api/v1/repos/ada/app/hooks", "token " + job, "", 403},
		{"the API reads another's", "GET", "/api/v1/repos/ada/app2/contents", "token " + job, "", 403},
		{"the API reads users", "GET", "/api/v1/user", "token " + job, "", 403},
		{"the API writes", "POST", "/api/v1/repos/ada/app/contents/a.txt", "token " + job, "{}", 403},
		{"the API sets a status", "POST", "/api/v1/repos/ada/app/statuses/abc", "token " + job, "{}", 403},
		{"the API merges", "POST", "/api/v1/repos/ada/app/pulls/1/merge", "token " + job, "{}", 403},
		{"a page", "GET", "/ada/app/settings", "token " + job, "", 403},
		{"a runner", "POST", "/api/actions/runner.v1.RunnerService/Register", "token " + job, "{}", 403},
		{"artifacts", "POST", "/api/actions_pipeline/_apis/pipelines/workflows/7/artifacts", "Bearer " + job, "{}", 200},
		{"artifacts, with a token that says which run it is of", "GET", "/api/actions_pipeline/_apis/pipelines/workflows/7/artifacts", "Bearer aaa.bbb." + job, "", 200},
		{"artifacts, with the token's claims alone", "GET", "/api/actions_pipeline/_apis/pipelines/workflows/7/artifacts", "Bearer aaa.bbb.", "", 401},
		{"artifacts of version 4", "POST", "/twirp/github.actions.results.api.v1.ArtifactService/CreateArtifact", "Bearer " + job, "{}", 200},
		{"another token", "GET", "/api/v1/repos/ada/app", "token abc", "", 401},
		{"the real token, guessed", "GET", "/api/v1/repos/ada/app", "token " + real, "", 401},
		{"a token in the address", "GET", "/api/v1/repos/ada/app?token=" + job, "", "", 401},
		{"no scheme", "GET", "/api/v1/repos/ada/app", job, "", 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, text := ask(t, d, c.method, c.path, c.auth, c.body)
			if code != c.code {
				t.Fatalf("%d %s", code, text)
			}
			if code != 200 {
				if strings.Contains(text, "forge ") {
					t.Errorf("came through: %s", text)
				}
				return
			}
			if !strings.HasPrefix(text, "forge "+c.method+" "+c.path+" ") || !strings.HasSuffix(text, "body="+c.body) || strings.Contains(text, job) || !strings.Contains(text, " cookie= ") {
				t.Errorf("the forge was asked: %s", text)
			}
			want := real
			if strings.HasPrefix(c.name, "artifacts") {
				want = runtime
			}
			if c.auth != "" && !strings.Contains(text, want) && !strings.Contains(text, basic("x:"+want)) {
				t.Errorf("without its token: %s", text)
			}
		})
	}
}

func TestATrustedJobsRequestsPass(t *testing.T) {
	t.Parallel()
	d := served(t, true)
	for _, path := range []string{"/ada/app.git/git-receive-pack", "/api/v1/repos/bob/x/statuses/1"} {
		if code, text := ask(t, d, "POST", path, "token "+real, "x"); code != 200 || !strings.HasPrefix(text, "forge POST "+path+" auth=token "+real+" cookie= ") {
			t.Errorf("%d %s", code, text)
		}
	}
}

func TestTheCacheAndOtherHosts(t *testing.T) {
	t.Parallel()
	for _, trusted := range []bool{true, false} {
		d := served(t, trusted)
		code, text := ask(t, d, "GET", "/git/github.com/actions/checkout.git/info/refs?service=git-upload-pack", "token "+job, "")
		if code != 200 || !strings.HasPrefix(text, "git GET /git/github.com/") || !strings.Contains(text, "auth= cookie= ") {
			t.Errorf("%d %s", code, text)
		}
		code, text = ask(t, d, "PATCH", "/_apis/artifactcache/caches/1", "Bearer "+job, "x")
		if code != 200 || !strings.HasPrefix(text, "cache PATCH /_apis/artifactcache/caches/1 ") || !strings.HasSuffix(text, "body=x") {
			t.Errorf("%d %s", code, text)
		}
		if code, text = ask(t, d, "GET", "/_apis/artifactcache/../x", "", ""); code != 400 {
			t.Errorf("%d %s", code, text)
		}
		c, err := net.Dial("tcp", d.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		text2, err := io.ReadAll(io.LimitReader(res.Body, 14))
		if err != nil || string(text2) != "proxy CONNECT " {
			t.Errorf("%q %v", text2, err)
		}
		res.Body.Close()
	}
}

// What a client of artifacts is told to ask next is the forge as the job reaches it; what
// was uploaded stays as it is.
func TestWhereArtifactsAreSent(t *testing.T) {
	t.Parallel()
	const here = "http://127.0.0.1:8098"
	mux, own := http.NewServeMux(), ""
	forge := httptest.NewServer(mux)
	t.Cleanup(forge.Close)
	for path, kind := range map[string]string{
		"/git/api/actions_pipeline/_apis/pipelines/workflows/7/artifacts":                "application/json;charset=utf-8",
		"/git/api/actions_pipeline/_apis/pipelines/workflows/7/artifacts/1/download":     "application/json",
		"/git/twirp/github.actions.results.api.v1.ArtifactService/CreateArtifact":        "application/json",
		"/git/twirp/github.actions.results.api.v1.ArtifactService/DownloadArtifact":      "application/json",
		"/git/twirp/github.actions.results.api.v1.ArtifactService/GetSignedArtifactURL":  "text/plain",
		"/git/api/v1/repos/ada/app/contents/a.json":                                      "application/json",
		"/git/twirp/github.actions.results.api.v1.ArtifactService/ListArtifacts":         "application/json",
		"/git/api/actions_pipeline/_apis/pipelines/workflows/7/artifacts/1/download_url": "application/json",
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			pad := ""
			if strings.HasSuffix(path, "/ListArtifacts") {
				pad = strings.Repeat("x", 9<<20)
			}
			fmt.Fprintf(w, `{"url":"%s/a?b=c","other":"%sx/","text":"see %[1]s/"}%[3]s`, own, own, pad)
		})
	}
	own = forge.URL + "/git"
	u, err := url.Parse(own + "/")
	if err != nil {
		t.Fatal(err)
	}
	for _, trusted := range []bool{true, false} {
		d := httptest.NewServer(door.New(door.Config{
			Forge: u, Here: here, Transport: http.DefaultTransport, Repo: "ada/app", Trusted: trusted, Given: job, Token: real, Runtime: runtime,
			Log: slog.New(slog.DiscardHandler),
		}))
		t.Cleanup(d.Close)
		kept := fmt.Sprintf(`{"url":"%s/a?b=c","other":"%sx/","text":"see %[1]s/"}`, own, own)
		changed := strings.Replace(kept, `"`+own+"/", `"`+here+"/", 1)
		for path, want := range map[string]string{
			"/api/actions_pipeline/_apis/pipelines/workflows/7/artifacts":                changed,
			"/api/actions_pipeline/_apis/pipelines/workflows/7/artifacts/1/download_url": changed,
			"/api/actions_pipeline/_apis/pipelines/workflows/7/artifacts/1/download":     kept,
			"/twirp/github.actions.results.api.v1.ArtifactService/CreateArtifact":        changed,
			"/twirp/github.actions.results.api.v1.ArtifactService/DownloadArtifact":      kept,
			"/twirp/github.actions.results.api.v1.ArtifactService/GetSignedArtifactURL":  kept,
			"/api/v1/repos/ada/app/contents/a.json":                                      kept,
		} {
			if code, text := ask(t, d, "GET", path, "", ""); code != 200 || text != want {
				t.Errorf("%s: %d %s", path, code, text)
			}
		}
		if code, _ := ask(t, d, "GET", "/twirp/github.actions.results.api.v1.ArtifactService/ListArtifacts", "", ""); code != 502 {
			t.Errorf("an answer without end: %d", code)
		}
	}
}

func basic(s string) string {
	r := http.Request{Header: http.Header{}}
	user, password, _ := strings.Cut(s, ":")
	r.SetBasicAuth(user, password)
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Basic ")
}
