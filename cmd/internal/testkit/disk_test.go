package testkit_test

import (
	"context"
	"errors"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
)

func TestWhatPodsHaveOnTheDisk(t *testing.T) {
	ctx := t.Context()
	m, tools := podManager(t, "disk")
	large, small, own := pods.Key{Owner: "ann", Repo: "large", Issue: 1}, pods.Key{Owner: "ann", Repo: "small", Issue: 2}, pods.Key{Owner: "ann", Repo: "large", Name: "mine"}
	for _, k := range []pods.Key{large, small, own} {
		s := spec(tools, k)
		s.WritableRoot = true
		_, err := m.Ensure(ctx, s)
		must(t, err)
		t.Cleanup(func() { must(t, m.Remove(context.WithoutCancel(ctx), k)) })
	}
	var told []pods.Key
	w := &pods.DiskWatch{Limit: 24 << 20, Disk: m.Disk, Full: func(_ context.Context, k pods.Key) { told = append(told, k) }}
	must(t, w.Look(ctx))
	if w.Why(large) != "" || len(told) > 0 {
		t.Errorf("%q, told %v", w.Why(large), told)
	}
	// In volumes and in a container's own file system; each alone may be.
	for _, file := range []struct{ role, user, path string }{
		{"agent", "1000", "/workspace/x"}, {"agent", "1000", "/home/agent/x"}, {"workspace", "1000", "/home/agent/x"}, {"workspace", "0", "/etc/x"},
	} {
		_, err := world.Podman(ctx, "exec", "--user", file.user, m.Name(large)+"-"+file.role, "/bin/busybox", "dd", "if=/dev/zero", "of="+file.path, "bs=1M", "count=7")
		must(t, err)
	}
	used, err := m.Disk(ctx)
	if err != nil || used[large] < 28<<20 || used[large] > 40<<20 || used[small] > 4<<20 {
		t.Errorf("%v, %v", used, err)
	}
	for range 2 {
		must(t, w.Look(ctx))
	}
	if w.Why(large) == "" || w.Why(small) != "" || w.Why(own) != "" || len(told) != 1 || told[0] != large {
		t.Errorf("large %q, small %q, own %q, told %v", w.Why(large), w.Why(small), w.Why(own), told)
	}
	// A person's own, which is told of again only when it has grown.
	fill := func(name, mebibytes string) {
		_, err := world.Podman(ctx, "exec", m.Name(own)+"-workspace", "/bin/busybox", "dd", "if=/dev/zero", "of=/workspace/"+name, "bs=1M", "count="+mebibytes)
		must(t, err)
		must(t, w.Look(ctx))
	}
	fill("x", "26")
	must(t, w.Look(ctx))
	if w.Why(own) == "" || len(told) != 2 || told[1] != own {
		t.Errorf("own %q, told %v", w.Why(own), told)
	}
	fill("y", "1")
	must(t, w.Look(ctx))
	if len(told) != 3 || told[2] != own {
		t.Errorf("when it has grown, told %v", told)
	}
	w.Disk = func(context.Context) (map[pods.Key]int64, error) { return nil, errors.New("away") }
	if err := w.Look(ctx); err == nil || w.Why(large) == "" {
		t.Errorf("without an answer it forgets: %v", err)
	}
}
