package forge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"sync"
)

// ErrNoSession says that what only the forge's pages do can't be done for want of an
// account that we may log in with.
var ErrNoSession = errors.New("the bot's account is not of our making, so we don't log in with it")

// A Web does what the forge's pages do and its API does not: running a run of Actions
// again, cancelling one, on old forges running a workflow, and answering in a thread of a
// review. It logs in as the bot, whose password it sets to a random one,
// kept nowhere, whenever it has no session. Its methods are safe for concurrent use.
//
// Source: routers/web/web.go of Forgejo and its sibling. The pages of the latter want a
// token against cross-site requests, which its cookie has; newer ones of Forgejo look at
// headers that browsers send, and we send none of those.
type Web struct {
	client *Client
	ours   bool

	mu      sync.Mutex
	session *http.Client // nil for none
}

// NewWeb makes one. c is a site admin's; ours says that nobody else logs in as the bot.
func NewWeb(c *Client, ours bool) *Web { return &Web{client: c, ours: ours} }

// Rerun runs all jobs of a repository's run (by its number there) that have ended again.
func (w *Web) Rerun(ctx context.Context, r Repo, run int64) error {
	return w.press(ctx, r, run, "rerun")
}

// Cancel ends all jobs of a run that have not ended.
func (w *Web) Cancel(ctx context.Context, r Repo, run int64) error {
	return w.press(ctx, r, run, "cancel")
}

// press does what a button of a run's page does.
func (w *Web) press(ctx context.Context, r Repo, run int64, button string) error {
	return w.post(ctx, fmt.Sprintf("to %s run %d of %s", button, run, r), r, fmt.Sprintf("actions/runs/%d/%s", run, button), nil)
}

// Dispatch is [Client.DispatchWorkflow] by the form of the page; ref is the whole name of a
// branch or tag. The workflow is the one of the default branch. The page answers with another
// page, which has what went wrong in a cookie.
func (w *Web) Dispatch(ctx context.Context, r Repo, workflow, ref string, inputs map[string]string) error {
	form := url.Values{}
	for name, value := range inputs {
		form.Set(name, value)
	}
	form.Set("ref", ref)
	form.Set("workflow", workflow)
	err := w.post(ctx, fmt.Sprintf("to run %s of %s", workflow, r), r, "actions/run", form)
	var e *Error
	if errors.As(err, &e) && e.Status == http.StatusSeeOther {
		return w.flash()
	}
	return err
}

// flash is the error that the last page had to tell, nil for none.
func (w *Web) flash() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	base, err := url.Parse(w.client.base + "/")
	if err != nil || w.session == nil {
		return err
	}
	for _, cookie := range w.session.Jar.Cookies(base) {
		if !strings.HasSuffix(cookie.Name, "_flash") {
			continue
		}
		text, err := url.QueryUnescape(cookie.Value)
		if err != nil {
			return fmt.Errorf("reading the forge's cookie: %w", err)
		}
		said, err := url.ParseQuery(text)
		if err != nil {
			return fmt.Errorf("reading the forge's cookie: %w", err)
		}
		if wrong := said.Get("error"); wrong != "" {
			return fmt.Errorf("the forge says: %.500q", wrong)
		}
	}
	return nil
}

// post sends a form to a page of a repository. A session that the forge does not know
// any more looks like a page that is not there, or like a missing right: so after a refusal
// it is tried once with a new one.
func (w *Web) post(ctx context.Context, what string, r Repo, page string, form url.Values) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	path := fmt.Sprintf("/%s/%s/%s", url.PathEscape(r.Owner), url.PathEscape(r.Name), page)
	fresh := w.session == nil
	for {
		if w.session == nil {
			if err := w.login(ctx); err != nil {
				return fmt.Errorf("logging in at the forge as %s, %s: %w", w.client.cfg.BotUser, what, err)
			}
		}
		if w.client.cfg.Fault != nil {
			w.client.cfg.Fault("forge: POST " + path)
		}
		act := Write{As: w.client.cfg.BotUser, Method: http.MethodPost, Path: path}
		w.client.tell(ctx, act, nil)
		err := w.send(ctx, http.MethodPost, path, form)
		var e *Error
		if err != nil && !(errors.As(err, &e) && e.Status == http.StatusSeeOther) { // which leads to the next page
			w.client.tell(ctx, act, err)
		}
		if fresh || !errors.As(err, &e) || e.Status >= 500 || e.Status == http.StatusSeeOther {
			return err
		}
		w.session, fresh = nil, true
	}
}

// login makes a session.
func (w *Web) login(ctx context.Context) (err error) {
	if !w.ours {
		return ErrNoSession
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	password := rand.Text() + "-a1"
	if err := w.client.SetPassword(ctx, w.client.cfg.BotUser, password); err != nil {
		return err
	}
	w.session = &http.Client{Transport: w.client.cfg.Transport, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer func() {
		if err != nil {
			w.session = nil
		}
	}()
	if err := w.send(ctx, http.MethodGet, "/user/login", nil); err != nil {
		return err
	}
	form := url.Values{"user_name": {w.client.cfg.BotUser}, "password": {password}}
	// Who is logged in is sent elsewhere; who is not sees the form again.
	var e *Error
	switch err := w.send(ctx, http.MethodPost, "/user/login", form); {
	case err == nil:
		return errors.New("the forge does not take its password; is signing in by one switched off there?")
	case !errors.As(err, &e) || e.Status/100 != 3:
		return err
	}
	return w.send(ctx, http.MethodGet, "/user/settings", nil) // which only who is logged in sees; it brings the session's own token
}

// send asks for a page, in the session. Only its status counts.
func (w *Web) send(ctx context.Context, method, path string, form url.Values) error {
	c := w.client
	base, err := url.Parse(c.base + "/")
	if err != nil {
		return err
	}
	csrf := ""
	for _, cookie := range w.session.Jar.Cookies(base) {
		if cookie.Name == "_csrf" {
			if csrf, err = url.QueryUnescape(cookie.Value); err != nil {
				return fmt.Errorf("reading the forge's cookie: %w", err)
			}
		}
	}
	if form != nil {
		form.Set("_csrf", csrf)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("X-Csrf-Token", csrf)
	}
	resp, err := w.session.Do(req)
	if err != nil {
		return fmt.Errorf("asking the forge: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20)) // so that the connection can be used again
	if err != nil {
		return fmt.Errorf("reading the forge's answer to %s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 == 2 {
		return nil
	}
	e := &Error{Method: method, Path: path, Status: resp.StatusCode, Message: message(b)}
	if to := resp.Header.Get("Location"); to != "" {
		e.Message = fmt.Sprintf("go to %.500q", to)
	}
	return e
}
