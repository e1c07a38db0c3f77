package main_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// Scripts that are run once more as an ordinary user: asUser in each run of the
// suite, those in which podman without root does something of its own; all but
// needRoot when TEST_ROOTLESS is "all", as `make soak-more` has it, and those
// that it names otherwise.
// docs/architecture.md says which and why.
var (
	asUser   = []string{"forge-up", "purge"}
	needRoot = []string{"disk-full", "oom"} // a mount; a memory limit on cgroup v1
)

func userScripts(t *testing.T) []string {
	t.Helper()
	switch which := os.Getenv("TEST_ROOTLESS"); which {
	case "":
		return asUser
	case "all":
	default:
		return strings.Split(which, ",")
	}
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		if name := scriptName(file); !slices.Contains(needRoot, name) {
			names = append(names, name)
		}
	}
	return names
}

// TestRootless runs the demo and a part of the suite as an ordinary user, made
// for it, with podman without root: this very test binary, and a demo that was
// compiled as `make demo` does.
func TestRootless(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("the whole suite is an ordinary user's here; only root can make another")
		return
	}
	t.Parallel() // beside TestEndToEnd: another user's podman, whose locks, networks and ports are its own
	ctx, cancel := context.WithTimeout(interrupted, patience)
	defer cancel()
	scripts := userScripts(t)
	user := newUser(ctx, t)
	t.Run("both", func(t *testing.T) {
		t.Run("demo", func(t *testing.T) {
			t.Parallel()
			out := runAs(ctx, t, user, "tree", "", filepath.Join(user.Dir, "tree/bin/demo"), "up")
			for _, seen := range []string{` untrusted +success`, `its check +http://\S+ \(Tests / test \(push\): success\)`} {
				if !regexp.MustCompile(seen).MatchString(out) {
					t.Errorf("the demo did not show %s:\n%s", seen, out)
				}
			}
			runAs(ctx, t, user, "tree", "", filepath.Join(user.Dir, "tree/bin/demo"), "down")
		})
		t.Run("scripts", func(t *testing.T) {
			t.Parallel()
			out := runAs(ctx, t, user, "tree/cmd/devaipod", "TEST_BIN="+filepath.Join(user.Dir, "tree/bin"), filepath.Join(user.Dir, "e2e.test"),
				"-test.v", "-test.run", "^TestEndToEnd$/^(first|together|alone)/^("+strings.Join(scripts, "|")+")$")
			for _, name := range scripts {
				if !strings.Contains(out, "/"+name+" (") {
					t.Errorf("the script %s did not run", name)
				}
			}
		})
	})
	if left, err := user.Processes(); err != nil || len(left) > 0 {
		t.Errorf("processes of the user that are left: %v %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(user.Dir, "tmp/dvt-*")); err != nil || len(left) > 0 {
		t.Errorf("left in the user's directory: %v %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(user.Dir, ".local/state/devaipod-demo")); !os.IsNotExist(err) {
		t.Errorf("the demo is still there: %v", err)
	}
}

// newUser makes the user and gives it what it can't read or make itself:
// binaries, recipes, scripts, and the images.
func newUser(ctx context.Context, t *testing.T) *testkit.OSUser {
	t.Helper()
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	user, err := testkit.NewOSUser(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		if err := user.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	give := map[string]string{
		self: "e2e.test", filepath.Join(root, "compose/images"): "tree/compose/images",
		filepath.Join(root, "cmd/devaipod/testdata"): "tree/cmd/devaipod/testdata",
	}
	for _, image := range []string{"agent", "forge", "ci"} {
		out, err := exec.CommandContext(ctx, filepath.Join(root, "compose/images/build"), image).Output()
		if err != nil {
			t.Fatalf("the %s image: %v", image, err)
		}
		tar := string(bytes.TrimSpace(out))
		give[tar] = "cache/images/" + filepath.Base(tar)
	}
	for from, to := range give {
		if err := user.Give(from, to); err != nil {
			t.Fatal(err)
		}
	}
	with := tags // what people run, unless scripts are named that kill at fault points
	if os.Getenv("TEST_ROOTLESS") != "" {
		with += " faults"
	}
	if err := compile(ctx, root, filepath.Join(user.Dir, "tree/bin"), with, "./cmd/devaipod", "./cmd/devaipod-box", "./cmd/devaipod-pod", "./cmd/internal/demo", "./cmd/internal/standin"); err != nil {
		t.Fatal(err)
	}
	if err := user.Own(); err != nil {
		t.Fatal(err)
	}
	return user
}

// runAs runs a program as the user and returns what it printed.
func runAs(ctx context.Context, t *testing.T, user *testkit.OSUser, dir, env, program string, args ...string) string {
	t.Helper()
	set := []string{"DEVAIPOD_CACHE=" + filepath.Join(user.Dir, "cache")}
	if env != "" {
		set = append(set, env)
	}
	out, err := user.Run(ctx, filepath.Join(user.Dir, dir), set, program, args...)
	if err != nil {
		t.Fatalf("as the user %s, %s %s: %v\n%s", user.Name, filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// podmansOwn are processes that podman keeps beyond any purge: what holds an
// ordinary user's namespace, and what keeps the end of an exec for five minutes
// and then clears it away.
var podmansOwn = regexp.MustCompile(`^catatonit -P $| --exec-attach | container cleanup .*--exec `)
