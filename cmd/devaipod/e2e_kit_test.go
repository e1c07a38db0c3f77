package main_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/cgi"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// kit serves testdata/kit, actions in JavaScript that are made with the libraries that
// actions/cache and actions/upload-artifact are made with, as them/kit with a tag v1, by
// git's own server on loopback: until "kit away", or the script's end.
func (c *call) kit() error {
	if len(c.args) == 1 && c.args[0] == "away" {
		return c.kitServer.Close()
	}
	files, err := buildKit()
	if err != nil {
		return err
	}
	repo, bare := c.ts.MkAbs(".kit/work"), c.ts.MkAbs(".kit/them/kit.git")
	if err := os.CopyFS(repo, os.DirFS(files)); err != nil {
		return err
	}
	var head strings.Builder
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"commit", "-q", "-m", "All"}, {"tag", "v1"}, {"clone", "-q", "--bare", ".", bare}, {"rev-parse", "HEAD"}} {
		if err := c.Git(c.ctx, testkit.Call{Args: args, Dir: repo, Stdout: &head}); err != nil {
			return err
		}
	}
	git, err := exec.LookPath("git")
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.kitServer = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: &cgi.Handler{
		Path: git, Args: []string{"http-backend"}, Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + c.ts.MkAbs(".kit"), "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}}
	go c.kitServer.Serve(l) //nolint:errcheck // ends with the script
	c.ts.Defer(func() { _ = c.kitServer.Close() })
	c.ts.Setenv("KIT", l.Addr().String())
	c.ts.Setenv("KIT_COMMIT", strings.TrimSpace(head.String()))
	return nil
}

// buildKit is a directory with the kit's actions, each in one file of JavaScript with all
// that it needs from npm; it is made once for a machine.
func buildKit() (string, error) {
	const kit = "testdata/kit"
	sum := sha256.New()
	err := fs.WalkDir(os.DirFS(kit), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(filepath.Join(kit, path))
		fmt.Fprintf(sum, "%s %d\n%s", path, len(text), text)
		return err
	})
	if err != nil {
		return "", err
	}
	cache := os.Getenv("DEVAIPOD_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(user, "devaipod")
	}
	out := filepath.Join(cache, fmt.Sprintf("kit-%x", sum.Sum(nil)[:8]))
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	dir := out + ".new"
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(cache, 0o755), os.CopyFS(dir, os.DirFS(kit))); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"},
		{"npm", "run", "build"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		if said, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("npm %s, to make actions for jobs: %w\n%s", args[1], err, said)
		}
	}
	return out, errors.Join(os.RemoveAll(filepath.Join(dir, "node_modules")), os.Rename(dir, out))
}

// dispatch presses the button that runs a workflow on the forge's page, as the person.
func (c *call) dispatch() error {
	if len(c.args) < 1 {
		return errors.New("usage: dispatch WORKFLOW NAME=VALUE…")
	}
	browser, err := c.browser()
	if err != nil {
		return err
	}
	form := url.Values{"ref": {"refs/heads/main"}}
	for _, input := range c.args[1:] {
		name, value, _ := strings.Cut(input, "=")
		form.Set(name, value)
	}
	page := "/" + c.env("REPO") + "/actions"
	query := "?workflow=" + url.QueryEscape(c.args[0])
	return c.submit(browser, page+query, page+"/run"+query, form)
}
