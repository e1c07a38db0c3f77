package mirror

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// deliverEvery is how often pushes that wait for the forge are tried.
const deliverEvery = 10 * time.Second

// Run delivers what was pushed while the forge was away, and looks after the work
// store, until ctx ends.
func (w *Work) Run(ctx context.Context) error {
	tick := time.NewTicker(deliverEvery)
	defer tick.Stop()
	told := map[string]bool{}
	for {
		if err := w.Deliver(ctx, told); err != nil && ctx.Err() == nil && !told[err.Error()] {
			told[err.Error()] = true
			w.log.Warn("delivering pushes to the forge; trying again", "err", err)
		}
		if err := w.Tend(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("looking after the work store", "err", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		case <-w.kicked:
		}
	}
}

// kick has [Work.Run] try at once.
func (w *Work) kick() {
	select {
	case w.kicked <- struct{}{}:
	default:
	}
}

// Deliver tries once to bring the forge all that waits for it. What can't be
// brought, since the branch has moved on there, is told once, by told, and kept.
func (w *Work) Deliver(ctx context.Context, told map[string]bool) error {
	ids, err := w.stores()
	for _, id := range ids {
		if e := w.deliver(ctx, id, told); e != nil {
			err = errors.Join(err, fmt.Errorf("repository %d: %w", id, e))
		}
	}
	return err
}

func (w *Work) deliver(ctx context.Context, id int64, told map[string]bool) error {
	s, waiting, err := w.waiting(ctx, id)
	if err != nil || len(waiting) == 0 {
		return err
	}
	repo, err := w.name(ctx, id)
	if err != nil {
		return err
	}
	known, err := w.known(ctx, repo)
	if err != nil {
		return err
	}
	if s, err = w.openStore(ctx, id, known, s.format); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	there, err := w.refsOfForge(ctx, repo)
	if err != nil {
		return err
	}
	for _, r := range waiting {
		branch := strings.TrimPrefix(r.name, pending)
		if err := w.deliverOne(ctx, s, repo, branch, r.id, there, told); err != nil {
			return err
		}
	}
	return nil
}

// waiting lists what a repository has for the forge.
func (w *Work) waiting(ctx context.Context, id int64) (*store, []ref, error) {
	s := w.storeAt(id)
	found, err := refs(ctx, s.dir, pending)
	if err == nil && len(found) > 0 {
		s.format, err = objectFormat(ctx, s.dir)
	}
	return s, found, err
}

func (w *Work) deliverOne(ctx context.Context, s *store, repo, branch, id string, there map[string]string, told map[string]bool) error {
	now, exists := there["refs/"+branch]
	onward, err := s.reaches(ctx, id, now)
	if err != nil {
		return err
	}
	has, err := s.reaches(ctx, now, id)
	if err != nil {
		return err
	}
	switch {
	case exists && has: // a later push brought it along, or an answer was lost
	case exists && !onward:
		if what := repo + " " + branch + " " + now + " " + id; !told[what] {
			told[what] = true
			w.log.Error("a push that was kept can't be delivered: the branch has moved on at the forge; it stays in the work store", "repo", repo, "branch", branch, "commit", id, "forge", now)
		}
		return nil
	default:
		if err := w.send(ctx, s, repo, command{old: now, new: id, ref: "refs/" + branch}, there); err != nil {
			return err
		}
		w.delivered(Delivery{Repo: repo, Refs: []string{"refs/" + branch + " " + id}})
		w.log.Info("a push that was kept is delivered", "repo", repo, "branch", branch, "commit", id)
	}
	return s.update(ctx, refUpdate{accepted + branch, id}, refUpdate{pending + branch, ""})
}

// reaches tells whether a commit has another among its ancestors. Neither need
// be here.
func (s *store) reaches(ctx context.Context, from, to string) (bool, error) {
	if from == "" || to == "" {
		return false, nil
	}
	if from == to {
		return true, nil
	}
	here, err := s.have(ctx, []string{from, to})
	if err != nil || len(here) < 2 {
		return false, err
	}
	var out bytes.Buffer
	err = s.git(ctx, nil, &out, "rev-list", "--max-count=1", to, "^"+from)
	return err == nil && out.Len() == 0, err
}

// have are those of ids whose objects are here.
func (s *store) have(ctx context.Context, ids []string) ([]string, error) {
	var out bytes.Buffer
	if err := s.git(ctx, strings.NewReader(strings.Join(ids, "\n")+"\n"), &out, "cat-file", "--batch-check=%(objectname) %(objecttype)"); err != nil {
		return nil, err
	}
	var here []string
	for line := range strings.Lines(out.String()) {
		if id, kind, _ := strings.Cut(strings.TrimSpace(line), " "); kind == "commit" {
			here = append(here, id)
		}
	}
	return here, nil
}

// refsOfForge asks what the forge has of a repository.
func (w *Work) refsOfForge(ctx context.Context, repo string) (map[string]string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if err != nil {
		return nil, err
	}
	resp, err := w.ask(r, repo, "/info/refs?service=git-receive-pack", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the forge answered %s", resp.Status)
	}
	in := bufio.NewReader(resp.Body)
	if err := readPkts(in, func([]byte) {}); err != nil { // "# service=…"
		return nil, err
	}
	there := map[string]string{}
	err = readPkts(in, func(line []byte) {
		text, _, _ := bytes.Cut(line, []byte{0})
		if id, name, ok := strings.Cut(strings.TrimSuffix(string(text), "\n"), " "); ok && isObjectID(id) && strings.HasPrefix(name, "refs/") {
			there[name] = id
		}
	})
	return there, err
}

// send pushes one commit, with what the forge lacks.
func (w *Work) send(ctx context.Context, s *store, repo string, c command, there map[string]string) error {
	if c.old == "" {
		c.old = strings.Repeat("0", len(c.new))
	}
	here, err := s.have(ctx, slices.Collect(maps.Values(there)))
	if err != nil {
		return err
	}
	q, err := s.quarantine()
	if err != nil {
		return err
	}
	defer q.close() //nolint:errcheck // the next start sweeps
	body := appendPktLine(nil, c.old+" "+c.new+" "+c.ref+"\x00report-status agent=devaipod")
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(q.git(ctx, revisions([]string{c.new}, here), pw, "pack-objects", "--revs", "--thin", "--delta-base-offset", "--stdout", "--quiet"))
	}()
	defer pr.Close() //nolint:errcheck // always nil
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "/", nil)
	if err != nil {
		return err
	}
	r.ContentLength = -1
	r.Header.Set("Content-Type", "application/x-git-receive-pack-request")
	resp, err := w.ask(r, repo, "/git-receive-pack", io.MultiReader(bytes.NewReader(append(body, "0000"...)), pr))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the forge answered %s", resp.Status)
	}
	ok, err := readReport(raw)
	if err == nil && !ok[c.ref] {
		err = fmt.Errorf("the forge did not take %s: %.500q", c.ref, raw)
	}
	return err
}
