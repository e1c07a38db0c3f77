package main_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	devaipod "codeberg.org/devaipod/devaipod/cmd/devaipod"
)

// Where a service was killed just as it started a child, its lock ends with the child's
// beginning, and the next service waits for that.
func TestALockIsWaitedForWhereItsHolderWasKilled(t *testing.T) {
	dir := t.TempDir()
	unlock, ok, err := devaipod.Lock(dir, "service.lock")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	defer unlock() //nolint:errcheck // the test ends
	if _, ok, err := devaipod.Lock(dir, "service.lock"); err != nil || ok {
		t.Errorf("two have it: %v %v", ok, err)
	}
	// flock(1) takes it, and leaves it to sleep, which ends by itself.
	left := exec.Command("flock", filepath.Join(dir, "left.lock"), "sh", "-c", "echo; exec sleep 0.5")
	out, err := left.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	defer left.Wait() //nolint:errcheck // sleep has nothing to say
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := devaipod.Lock(dir, "left.lock"); err != nil || !ok {
		t.Errorf("the lock of one that ends is not waited for: %v %v", ok, err)
	}
}
