package forge_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/forge"
)

const secret = "a-webhook-secret"

func sign(body, with string) string {
	mac := hmac.New(sha256.New, []byte(with))
	mac.Write([]byte(body))
	return hex.EncodeToString(mac.Sum(nil))
}

// deliver sends one webhook to a new handler and returns what came of it.
func deliver(method, body string, header map[string]string) (status int, got []forge.Event) {
	h := forge.Hook(func() string { return secret }, func(ev forge.Event) { got = append(got, ev) }, slog.New(slog.DiscardHandler))
	req := httptest.NewRequest(method, "/hooks/forge", strings.NewReader(body))
	for k, v := range header {
		req.Header.Set(k, v)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec.Code, got
}

func TestASignedWebhookGivesItsKey(t *testing.T) {
	repo := `"repository":{"full_name":"ann/hello"}`
	for name, tt := range map[string]struct {
		event, body string
		want        forge.Event
	}{
		"an issue":              {"issues", `{"issue":{"number":3},` + repo + `}`, forge.Event{Issue: 3}},
		"a comment":             {"issue_comment", `{"issue":{"number":3},` + repo + `}`, forge.Event{Issue: 3}},
		"a pull request":        {"pull_request", `{"pull_request":{"number":4,"head":{"ref":"agent/3-x"}},` + repo + `}`, forge.Event{Branch: "agent/3-x"}},
		"a pull request's talk": {"issue_comment", `{"issue":{"number":4,"pull_request":{}},` + repo + `}`, forge.Event{}},
		"a push":                {"push", `{"ref":"refs/heads/agent/3-x",` + repo + `}`, forge.Event{Branch: "agent/3-x"}},
		"a repository":          {"repository", `{"action":"created",` + repo + `}`, forge.Event{}},
	} {
		for _, header := range []string{"X-Gitea-Signature", "X-Forgejo-Signature", "X-Hub-Signature-256"} {
			sig := sign(tt.body, secret)
			if header == "X-Hub-Signature-256" {
				sig = "sha256=" + sig
			}
			status, got := deliver("POST", tt.body, map[string]string{header: sig, "X-Gitea-Event": tt.event})
			tt.want.Kind, tt.want.Repo = tt.event, forge.Repo{Owner: "ann", Name: "hello"}
			if status != http.StatusNoContent || len(got) != 1 || got[0] != tt.want {
				t.Errorf("%s by %s: %d, %+v, want %+v", name, header, status, got, tt.want)
			}
		}
	}
}

func TestAForgedWebhookIsRefused(t *testing.T) {
	body := `{"issue":{"number":3},"repository":{"full_name":"ann/hello"}}`
	for name, tt := range map[string]struct {
		method, body string
		header       map[string]string
		want         int
	}{
		"no signature":          {"POST", body, nil, 401},
		"another secret":        {"POST", body, map[string]string{"X-Gitea-Signature": sign(body, "guess")}, 401},
		"an empty secret":       {"POST", body, map[string]string{"X-Gitea-Signature": sign(body, "")}, 401},
		"another body":          {"POST", body + " ", map[string]string{"X-Gitea-Signature": sign(body, secret)}, 401},
		"no hex":                {"POST", body, map[string]string{"X-Gitea-Signature": "zz"}, 401},
		"a cut-off signature":   {"POST", body, map[string]string{"X-Gitea-Signature": sign(body, secret)[:10]}, 401},
		"a GET":                 {"GET", body, map[string]string{"X-Gitea-Signature": sign(body, secret)}, 405},
		"a body that's no JSON": {"POST", "[", map[string]string{"X-Gitea-Signature": sign("[", secret)}, 400},
		"a tricky repository":   {"POST", `{"repository":{"full_name":"../x"}}`, map[string]string{"X-Gitea-Signature": sign(`{"repository":{"full_name":"../x"}}`, secret)}, 400},
		"9 MiB":                 {"POST", strings.Repeat("x", 9<<20), nil, 413},
	} {
		if status, got := deliver(tt.method, tt.body, tt.header); status != tt.want || len(got) != 0 {
			t.Errorf("%s: %d, events %v, want %d", name, status, got, tt.want)
		}
	}
}

func TestRepositoryNames(t *testing.T) {
	for s, ok := range map[string]bool{
		"ann/hello": true, "a.b/c_d-e": true, "": false, "ann": false, "ann/": false, "/hello": false, "ann/hello/x": false,
		"../hello": false, "ann/..": false, "ann/hello.git": false, "ann/he llo": false, "ann/he\nllo": false, "ann/" + strings.Repeat("x", 101): false,
	} {
		if r, err := forge.ParseRepo(s); (err == nil) != ok || (ok && r.String() != s) {
			t.Errorf("%q: %v, %v", s, r, err)
		}
	}
}

func TestAgentsTextIsMadeHarmless(t *testing.T) {
	for in, bad := range map[string]string{
		"hello @ann and @org/team":              "@ann",
		"Closes #12":                            "#12",
		"this fixes: own/repo#3":                "fixes: own",
		"resolves https://forge/own/repo/1":     "resolves https",
		"see #4 and!5":                          "#4",
		"![x](http://evil/track.png)":           "![x]",
		"<img src=http://evil/x>":               "<img",
		"<!-- devaipod:demo:status -->":         "<!--",
		"abc\x1b[31m\u202edef":                  "\u202e",
		"zero\u200bwidth @\u200bann @\u2060ann": "@ann",
		"#1#2#3":                                "#2",
		"!\u200b[x](http://evil/track.png)":     "![",
	} {
		if out := forge.Harmless(in); strings.Contains(out, bad) || strings.Contains(out, "\x1b") {
			t.Errorf("%q became %q", in, out)
		}
	}
	plain := "# Title\n\n- `code` and **bold** [link](https://example.org)\n\n    a & b\n"
	if out := forge.Harmless(plain); out != plain {
		t.Errorf("ordinary markdown became %q", out)
	}
}

func FuzzHarmless(f *testing.F) {
	f.Add("Closes #1 @ann ![x](y) <b>")
	f.Add("@\u200b@@a\xff#1")
	f.Fuzz(func(t *testing.T, s string) {
		out := forge.Harmless(s)
		for i, r := range out {
			if r == '@' && i+1 < len(out) && isWord(out[i+1]) {
				t.Errorf("%q became %q: a mention", s, out)
			}
		}
		for _, bad := range []string{"![", "<", "\x1b"} {
			if strings.Contains(out, bad) {
				t.Errorf("%q became %q: it holds %q", s, out, bad)
			}
		}
	})
}

func isWord(b byte) bool {
	return b == '_' || b == '-' || b == '.' || (b >= '0' && b <= '9') || (b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z')
}
