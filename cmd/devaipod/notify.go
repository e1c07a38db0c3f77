package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// notifyConfig says whom to tell, beside the forge, when an agent needs somebody.
type notifyConfig struct {
	URL    string   `mapstructure:"url"`
	Format string   `mapstructure:"format"`
	On     []string `mapstructure:"on"`
	Secret string   `mapstructure:"secret"`
}

// The formats of a notice: ours, and ntfy's (docs.ntfy.sh/publish).
const (
	notifyJSON = "json"
	notifyNtfy = "ntfy"
)

func notifyDefaults() map[string]any {
	return map[string]any{"notify.url": "", "notify.format": notifyJSON, "notify.on": []string{"asking", "review", "failed"}, "notify.secret": ""}
}

func (n notifyConfig) check() error {
	if n.URL == "" {
		return nil
	}
	if u, err := url.Parse(n.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return errors.New("notify.url: want http(s)://HOST/PATH")
	}
	if n.Format != notifyJSON && n.Format != notifyNtfy {
		return fmt.Errorf("notify.format %q: want %s or %s", n.Format, notifyJSON, notifyNtfy)
	}
	known := []reconcile.State{reconcile.Queued, reconcile.Working, reconcile.Asking, reconcile.Review, reconcile.Done, reconcile.Failed, reconcile.Refused, reconcile.Stopped}
	for _, state := range n.On {
		if !slices.Contains(known, reconcile.State(state)) {
			return fmt.Errorf("notify.on %q: want some of %s", state, strings.Trim(fmt.Sprint(known), "[]"))
		}
	}
	return nil
}

// A notifier tells of what happened to issues' agents, each thing at most once: which
// is next is noted before it is told, in a file that outlives the service, and what may
// have arrived is not sent again. So a kill at the wrong time loses a notice; the forge
// has the same in its own words.
type notifier struct {
	notifyConfig
	instance string
	issueURL func(pod string) string
	key      func() (string, error) // what Secret names, "" for nothing
	happened *chronicle
	keep     func(audit.Entry) error // says so where it can't
	file     string
	again    time.Duration // before the second try, then twice as long
	log      *slog.Logger
}

// notifyTries is how often one notice is tried.
const notifyTries = 6

func (s *service) notifier() *notifier {
	n := &notifier{notifyConfig: s.cfg.Notify, instance: s.cfg.Instance, happened: s.happened, keep: s.note, file: s.cfg.file("notified"), again: time.Second, log: s.log}
	n.issueURL = func(pod string) string {
		repo, issue, _ := strings.Cut(pod, "#")
		return s.cfg.forgeURL() + "/" + repo + "/issues/" + issue
	}
	n.key = func() (string, error) {
		if n.Secret == "" {
			return "", nil
		}
		value, ok, err := s.cfg.secrets().Value(n.Secret)
		if err == nil && !ok {
			err = fmt.Errorf("there is no secret %s: run `devaipod secret set %s`", n.Secret, n.Secret)
		}
		return value, err
	}
	return n
}

// start tells until ctx ends, beside the caller; done is closed then. What happened
// before there was a notifier is not told.
func (n *notifier) start(ctx context.Context) (done chan struct{}) {
	done = make(chan struct{})
	if n.URL == "" {
		close(done)
		return done
	}
	last, err := n.last()
	go func() {
		defer close(done)
		n.run(ctx, last, err)
	}()
	return done
}

func (n *notifier) run(ctx context.Context, last int64, err error) {
	for ctx.Err() == nil {
		found, more := n.happened.after(last)
		for _, h := range found {
			if err == nil {
				err = podfile.Replace(n.file, strconv.AppendInt(nil, h.ID, 10))
			}
			if last = h.ID; err != nil { // it might be told again and again
				n.log.Error("nobody is notified: which notice was the last can't be noted", "err", err)
				return
			}
			if n.wants(h) {
				n.tell(ctx, h)
			}
		}
		select {
		case <-ctx.Done():
		case <-more:
		}
	}
}

// wants tells whether somebody is to be told. An agent that asks what it asked before,
// or what is being answered, needs nobody.
func (n *notifier) wants(h happening) bool {
	return h.Kind == kindAgent && slices.Contains(n.On, h.State) && (h.State != string(reconcile.Asking) || h.Ask != "")
}

// last is the id of what was told last, or is not to be told.
func (n *notifier) last() (int64, error) {
	text, err := os.ReadFile(n.file)
	if err == nil {
		return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if found, _ := n.happened.after(0); len(found) > 0 {
		last := found[len(found)-1].ID
		return last, podfile.Replace(n.file, strconv.AppendInt(nil, last, 10))
	}
	return 0, nil
}

// errUnsure is for a notice that may have arrived.
var errUnsure = errors.New("nobody knows whether it arrived, and it is not sent again")

// tell sends one notice, and again when that fails for certain.
func (n *notifier) tell(ctx context.Context, h happening) {
	e := audit.Entry{Act: "notice", About: h.Pod, Who: byService, Rule: "notify.on has " + h.State, Done: "POST to " + n.host(), Result: sent}
	_ = n.keep(e)
	wait := n.again
	for try := 1; ; try++ {
		err := n.send(ctx, h)
		if err == nil || ctx.Err() != nil {
			return
		}
		if try == notifyTries || errors.Is(err, errUnsure) {
			n.log.Error("a notice was not delivered", "about", h.Pod, "state", h.State, "err", err)
			e.Result = resultOf(err)
			_ = n.keep(e)
			return
		}
		sleep(ctx, wait)
		wait *= 2
	}
}

// host is where notices go; the rest of the address may be a secret.
func (n *notifier) host() string {
	u, err := url.Parse(n.URL)
	if err != nil {
		return "nowhere"
	}
	return u.Host
}

// A notice is what a webhook gets.
type notice struct {
	Instance    string    `json:"instance"`
	Issue       string    `json:"issue"` // owner/repo#3
	URL         string    `json:"url"`
	State       string    `json:"state"`
	Was         string    `json:"was,omitempty"`
	Why         string    `json:"why,omitempty"`
	PullRequest string    `json:"pull_request,omitempty"`
	Time        time.Time `json:"time"`
}

func (n *notifier) send(ctx context.Context, h happening) error {
	key, err := n.key()
	if err != nil {
		return err
	}
	about := n.issueURL(h.Pod)
	var body []byte
	head := map[string]string{"Content-Type": "application/json"}
	if n.Format == notifyNtfy {
		body = []byte(plain(h.Why, 1000))
		if len(body) == 0 {
			body = []byte(h.State)
		}
		head = map[string]string{"Title": h.Pod + ": " + h.State, "Click": about, "Tags": "devaipod," + h.State}
	} else if body, err = json.Marshal(notice{n.instance, h.Pod, about, h.State, h.Was, plain(h.Why, 2000), h.PullRequest, h.Time}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	for k, v := range head {
		req.Header.Set(k, v)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	var asked *url.Error
	if errors.As(err, &asked) { // which tells of the whole address
		err = fmt.Errorf("asking %s: %w", req.URL.Host, asked.Err)
	}
	if err != nil && sent.Load() {
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // the answer is its status
	if resp.StatusCode > 299 {
		return fmt.Errorf("%s answered %s", req.URL.Host, resp.Status)
	}
	return nil
}
