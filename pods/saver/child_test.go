package saver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/saver"
)

// A saver in a process of its own, which is this program again: one that can be
// killed, be another user, or have no watches.

const (
	childVar  = "SAVER_TEST_CHILD"  // once or run
	configVar = "SAVER_TEST_CONFIG" // the Config as JSON
	limitVar  = "SAVER_TEST_LIMIT"  // a file below /proc/sys/user to write 0 to
)

func TestMain(m *testing.M) {
	if verb := os.Getenv(childVar); verb != "" {
		if err := child(verb); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(verb string) error {
	var cfg saver.Config
	if err := json.Unmarshal([]byte(os.Getenv(configVar)), &cfg); err != nil {
		return err
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	if limit := os.Getenv(limitVar); limit != "" {
		if err := os.WriteFile("/proc/sys/user/"+limit, []byte("0"), 0o644); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if verb == "run" {
		return saver.Run(ctx, cfg)
	}
	return json.NewEncoder(os.Stdout).Encode(saver.Once(ctx, cfg))
}

// command is a saver's process.
func (p *place) command(verb string, env ...string) *exec.Cmd {
	p.t.Helper()
	cfg := p.cfg
	cfg.Log = nil
	b, err := json.Marshal(cfg)
	must(p.t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), childVar+"="+verb, configVar+"="+string(b)), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return cmd
}

// onceAsUser is once as a user without privileges, whose the files are.
func (p *place) onceAsUser() (saved podfile.Saved) {
	p.t.Helper()
	if os.Getuid() != 0 {
		return p.once()
	}
	const user = 54321
	program := p.path("program") // go test's folder is root's alone
	must(p.t, copyFile("/proc/self/exe", program))
	must(p.t, os.Chmod(p.dir, 0o755))
	must(p.t, os.MkdirAll(p.cfg.Home, 0o700))
	for _, top := range []string{p.clone, p.cfg.Home} {
		must(p.t, filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, user, user)
		}))
	}
	must(p.t, os.Chmod(p.cfgSocket(), 0o666))
	for dir := p.dir; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		must(p.t, os.Chmod(dir, 0o755))
	}
	cmd := p.command("once")
	cmd.Path = program
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user}
	out, err := cmd.Output()
	must(p.t, err)
	must(p.t, json.Unmarshal(out, &saved))
	if !saved.Complete {
		p.t.Errorf("%+v", saved)
	}
	return saved
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// A process of a saver that runs.
type process struct {
	cmd  *exec.Cmd
	said *locked
}

// run starts a saver's process; with a limit it is in a user name space of its
// own, in which the kernel gives it no inotify instance, or no watch.
func (p *place) run(limit string) *process {
	p.t.Helper()
	var env []string
	if limit != "" {
		env = []string{limitVar + "=" + limit}
	}
	c := &process{cmd: p.command("run", env...), said: &locked{}}
	if limit != "" {
		c.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		c.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		c.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	c.cmd.Stderr = c.said
	must(p.t, c.cmd.Start())
	p.t.Cleanup(c.kill)
	return c
}

// kill ends it at once; its end by a signal is what we want.
func (c *process) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
