package forge

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
)

// hookEvents are what the service wants to hear of.
var hookEvents = []string{
	"issues", "issue_assign", "issue_label", "issue_comment", "pull_request", "pull_request_sync", "pull_request_review_approved",
	"pull_request_review_rejected", "pull_request_review_comment", "push", "create", "repository",
}

type hookJSON struct {
	ID     int64             `json:"id,omitempty"`
	Type   string            `json:"type,omitempty"` // of a new one; it can't be changed
	Config map[string]string `json:"config"`
	Events []string          `json:"events"`
	Active bool              `json:"active"`
}

// EnsureSystemHook makes the forge send its events of all repositories to
// target, signed with secret. A hook with this target that is there is given
// the secret anew, since a secret can't be read back.
func (c *Client) EnsureSystemHook(ctx context.Context, target, secret string) (changed bool, err error) {
	v, err := c.Version(ctx)
	if err != nil {
		return false, err
	}
	want := hookJSON{
		Active: true, Events: hookEvents,
		Config: map[string]string{"url": target, "content_type": "json", "http_method": "post", "secret": secret, "is_system_webhook": "true"},
	}
	have, err := pages[hookJSON](ctx, c, call{method: "GET", path: "/admin/hooks"})
	if err != nil {
		return false, err
	}
	for _, h := range have {
		if h.Config["url"] == target {
			return false, c.do(ctx, call{method: http.MethodPatch, path: fmt.Sprintf("/admin/hooks/%d", h.ID), body: want}, nil)
		}
	}
	want.Type = v.hookType()
	return true, c.do(ctx, call{method: "POST", path: "/admin/hooks", body: want}, nil)
}

// RemoveSystemHook takes the hooks with this target off the forge.
func (c *Client) RemoveSystemHook(ctx context.Context, target string) error {
	have, err := pages[hookJSON](ctx, c, call{method: "GET", path: "/admin/hooks"})
	if err != nil {
		return err
	}
	for _, h := range have {
		if h.Config["url"] != target {
			continue
		}
		if err := c.do(ctx, call{method: http.MethodDelete, path: fmt.Sprintf("/admin/hooks/%d", h.ID)}, nil); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

// An Event says that something may have changed: a key, nothing more. What
// changed is read from the forge.
type Event struct {
	Kind   string // the forge's name of the event: "issues", "push", "repository", …
	Repo   Repo
	Issue  int64  // 0 when it is about no issue
	Branch string // of a push or a pull request's head, else ""
}

// OnComment tells whether it is about a comment.
func (e Event) OnComment() bool { return strings.Contains(e.Kind, "comment") }

// maxHook bounds a webhook's body, in bytes.
const maxHook = 8 << 20

// Hook takes the forge's webhooks: POST, signed with the secret. notify must
// return at once; it is called after the signature held, from any goroutine.
func Hook(secret func() string, notify func(Event), log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "webhooks are POST requests", http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxHook))
		if err != nil {
			http.Error(w, "reading the webhook: "+err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		if !signed(r.Header, body, secret()) {
			log.Warn("webhook refused: its signature is missing or wrong", "from", r.RemoteAddr)
			http.Error(w, "the signature is missing or wrong", http.StatusUnauthorized)
			return
		}
		ev, err := readEvent(r.Header, body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		log.Debug("webhook", "kind", ev.Kind, "repo", ev.Repo.String(), "issue", ev.Issue, "branch", ev.Branch)
		notify(ev)
		w.WriteHeader(http.StatusNoContent)
	})
}

// signed checks the HMAC-SHA256 of body in whichever header the forge uses.
func signed(h http.Header, body []byte, secret string) bool {
	if secret == "" {
		return false
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	want := mac.Sum(nil)
	for _, name := range []string{"X-Forgejo-Signature", "X-Gitea-Signature", "X-Hub-Signature-256"} {
		got, err := hex.DecodeString(strings.TrimPrefix(h.Get(name), "sha256="))
		if err == nil && hmac.Equal(got, want) {
			return true
		}
	}
	return false
}

func readEvent(h http.Header, body []byte) (Event, error) {
	var p struct {
		Ref        string `json:"ref"`
		Repository struct {
			FullName string `json:"full_name"`
		} `json:"repository"`
		Issue *struct {
			Number int64     `json:"number"`
			Pull   *struct{} `json:"pull_request"`
		} `json:"issue"`
		Pull *struct {
			Head struct {
				Ref string `json:"ref"`
			} `json:"head"`
		} `json:"pull_request"`
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return Event{}, errors.New("the webhook's body is not JSON of the expected form")
	}
	ev := Event{Kind: h.Get("X-Forgejo-Event")}
	if ev.Kind == "" {
		ev.Kind = h.Get("X-Gitea-Event")
	}
	var err error
	if ev.Repo, err = ParseRepo(p.Repository.FullName); err != nil {
		return Event{}, err
	}
	switch {
	case p.Pull != nil:
		ev.Branch = p.Pull.Head.Ref
	case p.Issue != nil && p.Issue.Pull == nil:
		ev.Issue = p.Issue.Number
	default:
		ev.Branch, _ = strings.CutPrefix(p.Ref, "refs/heads/")
	}
	return ev, nil
}
