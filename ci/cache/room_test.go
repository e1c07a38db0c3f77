package cache_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/cache"
)

// What an entry of these tests counts for: its archive, and 16 KiB.
const (
	each = 84 << 10
	cost = 100 << 10
)

func fill(c *client, keys ...string) {
	for _, k := range keys {
		c.save(k, strings.Repeat("x", each))
	}
}

func keys(t *testing.T, dir string) []string {
	var all []string
	for k := range entries(t, dir) {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

func TestWhatWasUsedLeastGoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newClient(t, open(t, cache.Config{Dir: dir, Max: 5 * cost}), cache.Scope{Tier: cache.Trusted, Ref: main})
	fill(c, "a", "b", "c", "d", "e")
	c.restored("a")
	fill(c, "f")
	if got := keys(t, dir); !slices.Equal(got, []string{"a", "c", "d", "e", "f"}) {
		t.Errorf("%q", got)
	}
	// The times outlive the service; and less room than before is kept to at its start.
	c.restored("c")
	c = newClient(t, open(t, cache.Config{Dir: dir, Max: 3 * cost}), cache.Scope{Tier: cache.Trusted, Ref: main})
	if got := keys(t, dir); !slices.Equal(got, []string{"a", "c", "f"}) {
		t.Errorf("%q", got)
	}
	if c.restored("d") != "" || c.restored("c") == "" {
		t.Error("it restores others than there are")
	}
}

func TestAFloodLeavesTheOthersAShare(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, cache.Config{Dir: dir, Max: 12 * cost})
	small, large := newClient(t, s, cache.Scope{Repo: 1, Tier: cache.Trusted, Ref: main}), newClient(t, s, cache.Scope{Repo: 2, Tier: cache.Secret, Ref: main})
	fill(small, "small-1", "small-2", "small-3")
	for i := range 9 {
		fill(large, fmt.Sprintf("large-%d", i))
	}
	// An agent of the small one floods, by many branches.
	for i := range 40 {
		agent := newClient(t, s, cache.Scope{Repo: 1, Tier: cache.Untrusted, Ref: fmt.Sprintf("refs/heads/agent/%d", i)})
		fill(agent, fmt.Sprintf("agent-%02d", i))
	}
	count := map[string]int{}
	for _, k := range keys(t, dir) {
		name, _, _ := strings.Cut(k, "-")
		count[name]++
	}
	if count["small"] != 3 || count["large"] < 4 || count["agent"] < 4 || count["small"]+count["large"]+count["agent"] != 12 {
		t.Errorf("%v", count)
	}
	// So does one that only sends, and never commits.
	flooding := flood(t, s, 40)
	count = map[string]int{}
	for _, k := range keys(t, dir) {
		name, _, _ := strings.Cut(k, "-")
		count[name]++
	}
	if count["small"] != 3 || count["large"] < 2 || count["agent"] < 2 {
		t.Errorf("%v", count)
	}
	for _, c := range flooding {
		c.job.Close()
	}
	fill(small, "small-4", "small-5")
	if small.restored("small-1") == "" || small.restored("small-5") == "" {
		t.Error("the small one has lost something")
	}
}

// flood has many jobs send what they don't commit.
func flood(t *testing.T, s *cache.Store, jobs int) (all []*client) {
	t.Helper()
	full := 0
	for i := range jobs {
		c := newClient(t, s, cache.Scope{Repo: 3, Tier: cache.Untrusted, Ref: fmt.Sprintf("refs/heads/%d", i)})
		all = append(all, c)
		code, at := c.reserved("k", 0)
		if code == 507 {
			full++
			continue
		}
		if code, _ = c.ask("PATCH", at, fmt.Sprintf("bytes 0-%d/*", each-1), strings.NewReader(strings.Repeat("x", each))); code == 507 {
			full++
		}
	}
	if full == 0 {
		t.Error("all of it had room")
	}
	return all
}

func TestThousandsOfKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, cache.Config{Dir: dir, Entries: 600})
	c, agent := newClient(t, s, cache.Scope{Tier: cache.Trusted, Ref: main}), newClient(t, s, cache.Scope{Tier: cache.Untrusted, Ref: main})
	c.save("good", "good")
	for i := range 1100 {
		agent.save(fmt.Sprintf("k-%04d", i), "x")
	}
	all := entries(t, dir)
	if len(all) != 601 || all["good"].Key == "" || all["k-0499"].Key != "" || all["k-0500"].Key == "" {
		t.Errorf("%d entries", len(all))
	}
	if h := agent.find("v", "none", "k-0501", "k-"); h == nil || h.Key != "k-0501" {
		t.Errorf("%+v", h)
	}
	if h := agent.find("v", "k-"); h == nil || h.Key != "k-1099" {
		t.Errorf("%+v", h)
	}
}
