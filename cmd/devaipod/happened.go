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
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// What happened: the changes of state of pods and of the service, kept in a file of
// the state directory, so that they are told once, whenever the service starts.

// A happening is one of them. Its JSON is part of the output of `devaipod events`.
type happening struct {
	ID          int64     `json:"id"` // they count up
	Time        time.Time `json:"time"`
	Kind        string    `json:"kind"`          // kindAgent, kindWorkspace or kindService
	Pod         string    `json:"pod,omitempty"` // owner/repo#3 or owner/repo@name
	State       string    `json:"state"`
	Was         string    `json:"was,omitempty"`
	Why         string    `json:"why,omitempty"`
	PullRequest string    `json:"pull_request,omitempty"`
	// Ask names what an agent asks, in the one that tells of it first.
	Ask string `json:"ask,omitempty"`
}

const (
	kindService = "service"
	eventsFile  = "events.jsonl"
	// mostHappened is how many are kept, maxHappened how large the file may grow
	// before it is made anew with those, in bytes.
	mostHappened = 2000
	maxHappened  = 4 << 20
)

// A chronicle keeps what happened. Its methods may be called concurrently.
type chronicle struct {
	path string
	log  *slog.Logger

	mu    sync.Mutex
	all   []happening
	state map[string]string // the last one of each pod
	wake  chan struct{}     // closed at the next one
	size  int64             // of the file
	told  bool              // that it can't be written
}

// openChronicle reads what is kept in a file. A line that a kill or a full disk has
// cut off is left out.
func openChronicle(path string, log *slog.Logger) (*chronicle, error) {
	c := &chronicle{path: path, log: log, state: map[string]string{}, wake: make(chan struct{})}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading what happened: %w", err)
	}
	for line := range bytes.Lines(text) {
		var h happening
		if json.Unmarshal(line, &h) == nil && h.ID > 0 {
			c.take(h)
		}
	}
	return c, c.rewrite()
}

func (c *chronicle) take(h happening) {
	c.all = append(c.all, h)
	if len(c.all) > mostHappened {
		c.all = c.all[len(c.all)-mostHappened:]
	}
	c.state[h.Kind+h.Pod] = h.State
}

// rewrite makes the file anew with what is kept.
func (c *chronicle) rewrite() error {
	var b bytes.Buffer
	for _, h := range c.all {
		if err := json.NewEncoder(&b).Encode(h); err != nil {
			return err
		}
	}
	c.size = int64(b.Len())
	if err := podfile.Replace(c.path, b.Bytes()); err != nil {
		return fmt.Errorf("keeping what happened: %w", err)
	}
	return nil
}

// add notes a pod's new state, unless it is the one that was noted last, and each thing
// that an agent asks.
func (c *chronicle) add(h happening) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.all, func(o happening) bool { return o.Pod == h.Pod && o.Ask == h.Ask }) {
		h.Ask = ""
	}
	if h.Was = c.state[h.Kind+h.Pod]; h.Was == h.State && h.Ask == "" && h.Kind != kindService {
		return
	}
	h.ID, h.Time = 1, time.Now()
	if n := len(c.all); n > 0 {
		h.ID = c.all[n-1].ID + 1
	}
	c.take(h)
	close(c.wake)
	c.wake = make(chan struct{})
	if err := c.write(h); err != nil && !c.told {
		c.told = true
		c.log.Warn("what happened can't be kept; it is told until the service ends", "err", err)
	}
}

func (c *chronicle) write(h happening) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if c.size += int64(len(b)) + 1; c.size > maxHappened {
		return c.rewrite()
	}
	f, err := os.OpenFile(c.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}

// after are those after an id, and what is closed when there are more.
func (c *chronicle) after(id int64) ([]happening, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := len(c.all)
	for i > 0 && c.all[i-1].ID > id {
		i--
	}
	return append([]happening(nil), c.all[i:]...), c.wake
}

// tellWorkspace notes what became of a person's pod.
func (s *service) tellWorkspace(k pods.Key, state string) {
	s.happened.add(happening{Kind: kindWorkspace, Pod: k.String(), State: state})
}

// tellAgent notes what became of an issue's.
func (s *service) tellAgent(v reconcile.View) {
	s.happened.add(happening{Kind: kindAgent, Pod: v.Issue, State: string(v.State), Why: v.Why, PullRequest: v.PullRequest, Ask: v.Ask})
}

// serveHappened streams lines of JSON.
func (s *service) serveHappened(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		http.Error(w, "after: want an event's id", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	flush := http.NewResponseController(w)
	for {
		found, more := s.happened.after(id)
		for _, h := range found {
			if json.NewEncoder(w).Encode(h) != nil {
				return // it has gone
			}
			id = h.ID
		}
		if r.URL.Query().Get("follow") != "1" || flush.Flush() != nil {
			return
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

func (a *app) eventsCmd() *cobra.Command {
	var follow bool
	var since time.Duration
	cmd := &cobra.Command{
		Use: "events", Short: "Print what happened to pods", Args: noArgs,
		Long: `Print the changes of state of pods, of agents and people alike, and the service's own,
as the service saw them: a line each, or a line of JSON with --json. The newest 2000 are
kept.`,
		Example: `  devaipod events --since 1h
  devaipod events -f --json | jq 'select(.state == "review")'`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.events(cmd.Context(), follow, since) },
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing what comes")
	cmd.Flags().DurationVar(&since, "since", 0, "how long ago at most (default: all that is kept)")
	return a.jsonFlag(cmd)
}

func (a *app) events(ctx context.Context, follow bool, since time.Duration) error {
	if since < 0 {
		return usagef("--since %s: want how long ago, such as 10m", since)
	}
	path := "/api/events?after=0"
	if follow {
		path += "&follow=1"
	}
	resp, err := a.api().do(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	begin := time.Now().Add(-since)
	for lines := json.NewDecoder(resp.Body); lines.More(); {
		var h happening
		if err := lines.Decode(&h); err != nil {
			return a.eventsEnded(ctx, err)
		}
		if since > 0 && h.Time.Before(begin) {
			continue
		}
		if err := a.printHappening(h); err != nil {
			return err
		}
	}
	if follow {
		return a.eventsEnded(ctx, errors.New("the service has ended"))
	}
	return nil
}

// eventsEnded says why no more comes. Who ends it by Ctrl-C wanted that.
func (a *app) eventsEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // as it says
	}
	return &exitError{codeUnreachable, fmt.Errorf("no more events: %w; devaipod forge up -d starts it again", err)}
}

func (a *app) printHappening(h happening) error {
	if a.asJSON {
		return a.printJSON(h)
	}
	what := h.State
	if h.Was != "" && h.Kind != kindService {
		what = h.Was + " -> " + h.State
	}
	about := h.Pod
	if about == "" {
		about = h.Kind
	}
	line := fmt.Sprintf("%s  %s  %s", h.Time.Local().Format(time.DateTime), about, what)
	for _, more := range []string{h.PullRequest, h.Why} {
		if more != "" {
			line += "  " + strings.Join(strings.Fields(plain(more, 300)), " ")
		}
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}
