package testkit_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// A lender is what a manager borrows from, in the cache's stead.
type lender struct {
	t     *testing.T
	dir   string // what is lent next; "" for nothing
	err   error
	calls int
	held  int
}

func (l *lender) lend(context.Context, pods.Spec) (string, func(), error) {
	l.calls++
	if l.err != nil {
		return "", nil, l.err
	}
	l.held++
	return l.dir, func() { l.held-- }, nil
}

// generation makes a directory as the cache lends it, below one that is its
// owner's alone.
func (l *lender) generation(name string) string {
	l.t.Helper()
	dir := filepath.Join(world.Dir, "lent", name)
	must(l.t, os.MkdirAll(filepath.Join(dir, "objects"), 0o755))
	must(l.t, os.Chmod(filepath.Dir(dir), 0o700))
	must(l.t, os.WriteFile(filepath.Join(dir, "objects", "pack"), []byte(name), 0o444))
	return dir
}

func (l *lender) wantBorrowed(m *pods.Manager, want ...string) {
	l.t.Helper()
	got, err := m.Borrowed(l.t.Context())
	must(l.t, err)
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
		l.t.Errorf("borrowed: %v, want %v", names, want)
	}
	if l.held != 0 {
		l.t.Errorf("%d are still on their way to a pod", l.held)
	}
}

func (l *lender) manager(instance string) (*pods.Manager, string) {
	l.t.Helper()
	_, tools := podManager(l.t, instance)
	m, err := pods.New(pods.Config{Instance: instance, StateDir: filepath.Join(world.Dir, instance), Backend: podman.NewPods(world.client, instance, world.log), Images: world.client, Lend: l.lend, Log: world.log})
	must(l.t, err)
	return m, tools
}

func TestAPodBorrowsWithoutARightToWrite(t *testing.T) {
	ctx := t.Context()
	l := &lender{t: t}
	m, tools := l.manager("borrow")
	k := pods.Key{Owner: "ann", Repo: "big", Issue: 3}
	l.dir = l.generation("first")
	if _, err := m.Ensure(ctx, spec(tools, k)); err != nil {
		t.Fatal(err)
	}
	p, _ := find(t, m, k)
	file := podfile.BorrowDir + "/objects/pack"
	for _, role := range []string{"agent", "workspace"} {
		if out, err := world.Podman(ctx, "exec", p.Name+"-"+role, "cat", file); err != nil || !strings.Contains(out, "first") {
			t.Errorf("%s reads %q, %v", role, out, err)
		}
		for _, user := range []string{"1000", "0"} {
			for _, hostile := range []string{
				"echo x >> " + file, "echo x > " + podfile.BorrowDir + "/objects/more", "busybox chmod 666 " + file, "busybox rm -f " + file,
				"busybox mv " + podfile.BorrowDir + "/objects " + podfile.BorrowDir + "/other", "busybox mount -o remount,rw " + podfile.BorrowDir, "busybox umount " + podfile.BorrowDir,
			} {
				if out, err := world.Podman(ctx, "exec", "--user", user, p.Name+"-"+role, "/bin/busybox", "sh", "-c", strings.ReplaceAll(hostile, "busybox", "/bin/busybox")); err == nil {
					t.Errorf("%s, as user %s: %s went through: %s", role, user, hostile, out)
				}
			}
		}
	}
	if b, err := os.ReadFile(filepath.Join(l.dir, "objects", "pack")); err != nil || string(b) != "first" {
		t.Errorf("what is lent is %q now, %v", b, err)
	}
	if out, err := world.Podman(ctx, "exec", p.Name+"-control", "/devaipod-pod", "version"); err != nil {
		t.Error(out, err)
	}
	if out, err := world.Podman(ctx, "inspect", p.Name+"-control"); err != nil || strings.Contains(out, l.dir) {
		t.Errorf("control has it mounted: %v", err)
	}
	must(t, m.Remove(ctx, k))
	l.wantBorrowed(m)
}

func TestAPodKeepsWhatItsClonesBorrowFrom(t *testing.T) {
	ctx := t.Context()
	l := &lender{t: t}
	m, tools := l.manager("keeps")
	k := pods.Key{Owner: "ann", Repo: "big", Issue: 3}
	first := l.generation("kept")
	l.dir = first
	s := spec(tools, k)
	if _, err := m.Ensure(ctx, s); err != nil {
		t.Fatal(err)
	}
	// A new event, after the repository has changed; stopped; its specification
	// lost with the run directory.
	l.dir = l.generation("newer")
	s.Pin.EventID = 8
	if _, err := m.Ensure(ctx, s); err != nil {
		t.Fatal(err)
	}
	l.wantBorrowed(m, first)
	must(t, m.Stop(ctx, k))
	l.wantBorrowed(m, first)
	must(t, os.RemoveAll(m.RunDir(k)))
	l.wantBorrowed(m, first)
	if _, err := m.Ensure(ctx, s); err != nil || l.calls != 1 {
		t.Errorf("lent %d times, %v", l.calls, err)
	}
	l.wantBorrowed(m, first)
	// A specification that can't be read: nobody knows what is borrowed.
	file := filepath.Join(m.RunDir(k), "spec.json")
	text, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, []byte("{"), 0o600))
	if got, err := m.Borrowed(ctx); err == nil {
		t.Errorf("borrowed, as far as can't be known: %v", got)
	}
	must(t, os.WriteFile(file, text, 0o600))
	must(t, m.Remove(ctx, k))
	l.wantBorrowed(m)
}

func TestWhatAPodBorrowsWasRemovedByHand(t *testing.T) {
	ctx := t.Context()
	l := &lender{t: t}
	m, tools := l.manager("hand")
	k := pods.Key{Owner: "ann", Repo: "big", Issue: 3}
	first := l.generation("removed")
	l.dir = first
	if _, err := m.Ensure(ctx, spec(tools, k)); err != nil {
		t.Fatal(err)
	}
	must(t, os.RemoveAll(first))
	must(t, m.Stop(ctx, k))
	l.err = errors.New("the forge is away")
	if err := m.Resume(ctx, k); err == nil || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), "which is gone, and it can't be lent anew: the forge is away") {
		t.Errorf("resumed: %v", err)
	}
	l.err, l.dir = nil, l.generation("again")
	must(t, m.Resume(ctx, k))
	p, _ := find(t, m, k)
	if out, err := world.Podman(ctx, "exec", p.Name+"-agent", "cat", podfile.BorrowDir+"/objects/pack"); err != nil || !strings.Contains(out, "again") {
		t.Errorf("the agent reads %q, %v", out, err)
	}
	must(t, m.Remove(ctx, k))
	l.wantBorrowed(m)
}

// A pod of which nothing could be lent has whole clones, for good.
func TestAPodThatBorrowsNothing(t *testing.T) {
	ctx := t.Context()
	l := &lender{t: t, err: errors.New("its repository is being fetched")}
	m, tools := l.manager("without")
	k := pods.Key{Owner: "ann", Repo: "big", Issue: 3}
	if _, err := m.Ensure(ctx, spec(tools, k)); !errors.Is(err, l.err) {
		t.Errorf("made: %v", err)
	}
	if _, ok := find(t, m, k); ok {
		t.Error("there is a pod that waits for what it borrows")
	}
	l.err = nil
	for range 2 {
		if _, err := m.Ensure(ctx, spec(tools, k)); err != nil {
			t.Fatal(err)
		}
		l.wantBorrowed(m)
		l.dir = l.generation("later")
	}
	must(t, m.Resume(ctx, k))
	l.wantBorrowed(m)
	must(t, m.Remove(ctx, k))
}
