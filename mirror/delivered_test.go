package mirror_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror"
)

// What came to the forge is told: at once, and later when the forge was away; and what the
// gate refused, and why.
func TestWhatCameToTheForgeIsTold(t *testing.T) {
	s := newStack(t)
	var mu sync.Mutex
	var told []mirror.Delivery
	var refused []string
	s.config.Delivered = func(d mirror.Delivery) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, d)
	}
	s.config.Refused = func(d mirror.Delivery, why string) {
		mu.Lock()
		defer mu.Unlock()
		refused = append(refused, fmt.Sprintf("%+v: %s", d, why))
	}
	s.rules.Lifts = func(context.Context) ([]mirror.Lift, error) { return []mirror.Lift{{ID: "1", Path: workflow}}, nil }
	s.start(t)
	git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
	s.put(t, "CODEOWNERS", "* me\n")
	s.refused(t, "CODEOWNERS")
	changed := s.head(t)
	if out, err := run(s.clone, "push", "origin", "HEAD:refs/heads/main"); err == nil {
		t.Errorf("it took a push to main: %s", out)
	}
	git(t, s.clone, "reset", "-q", "--hard", "HEAD~1")
	s.put(t, workflow, "on: push\n")
	s.taken(t)
	first := s.head(t)
	s.down.Store(true)
	s.put(t, "more", "work")
	if out, err := s.push(t); err == nil || !strings.Contains(out, "not on the forge yet") {
		t.Fatalf("%v: %s", err, out)
	}
	mu.Lock()
	if len(told) != 1 {
		t.Errorf("told of %+v while the forge is away", told)
	}
	mu.Unlock()
	s.down.Store(false)
	if err := s.work.Deliver(t.Context(), map[string]bool{}); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint([]mirror.Delivery{
		{Repo: "alice/hello", Issue: pusher.Issue, Agent: pusher.Agent, Refs: []string{"refs/heads/agent/3-work " + first}, Lifts: []string{workflow}},
		{Repo: "alice/hello", Refs: []string{"refs/heads/agent/3-work " + s.head(t)}},
	})
	if got := fmt.Sprint(told); got != want {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
	for n, want := range []string{"refs/heads/agent/3-work " + changed + "] Lifts:[]}: ", "refs/heads/main " + changed + "] Lifts:[]}: this pod may push only to branches"} {
		if n >= len(refused) || !strings.HasPrefix(refused[n], fmt.Sprintf("{Repo:alice/hello Issue:%s Agent:%s Refs:[", pusher.Issue, pusher.Agent)+want) {
			t.Errorf("refused %q, want %q", refused, want)
		}
	}
	if len(refused) != 2 {
		t.Errorf("refused %q", refused)
	}
}
