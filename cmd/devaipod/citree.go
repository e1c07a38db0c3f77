package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// A workTree is a working tree, as it lies there.
type workTree struct {
	top               string // absolute
	branch, commit    string // "" for none
	owner, repo, base string
}

// git is a git command in the tree, without what its configuration would run.
func (t *workTree) git(ctx context.Context, args ...string) (string, error) {
	return gitIn(ctx, t.top, args...)
}

func gitIn(ctx context.Context, dir string, args ...string) (string, error) {
	var out bytes.Buffer
	err := gitproc.Child{
		Args: append([]string{"-C", dir}, args...), Stdout: &out,
		Config: []string{"core.fsmonitor=false", "protocol.file.allow=always", "fetch.fsckObjects=false", "core.fsync=none"},
	}.Run(ctx)
	return strings.TrimSuffix(out.String(), "\n"), err
}

// said is what git answers, "" where it has no answer.
func (t *workTree) said(ctx context.Context, args ...string) string {
	out, err := t.git(ctx, args...)
	if err != nil {
		return ""
	}
	return out
}

var remoteName = regexp.MustCompile(`[/:]([A-Za-z0-9_.-]+)/([A-Za-z0-9_.-]+?)(?:\.git)?/?$`)

// openTree finds the working tree that dir is in.
func openTree(ctx context.Context, dir string) (*workTree, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(abs); err != nil || !info.IsDir() {
		return nil, usagef("%s is no directory", dir)
	}
	top, err := gitIn(ctx, abs, "rev-parse", "--show-toplevel")
	if err != nil || top == "" {
		return nil, usagef("%s is in no working tree of git (git init makes it one): %w", dir, err)
	}
	t := &workTree{top: top, owner: "local", repo: filepath.Base(top)}
	t.branch = t.said(ctx, "symbolic-ref", "--quiet", "--short", "HEAD")
	t.commit = t.said(ctx, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	if m := remoteName.FindStringSubmatch(t.said(ctx, "config", "remote.origin.url")); m != nil {
		t.owner, t.repo = m[1], m[2]
	}
	t.base = strings.TrimPrefix(t.said(ctx, "symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD"), "origin/")
	if t.base == "" {
		t.base = "main"
	}
	return t, nil
}

// workflowDirs are where workflows are, in the forge's order: the first that is there counts.
var workflowDirs = []string{".forgejo/workflows", ".gitea/workflows", ".github/workflows"}

const maxWorkflowFile = 1 << 20 // bytes

// workflows reads the tree's workflows, or the one that is named.
func (t *workTree) workflows(file string) (map[string][]byte, error) {
	if strings.ContainsRune(file, '/') {
		text, err := readWorkflow(os.DirFS("/"), strings.TrimPrefix(mustAbs(file), "/"))
		return map[string][]byte{filepath.Base(file): text}, err
	}
	files := map[string][]byte{}
	for _, dir := range workflowDirs {
		entries, err := os.ReadDir(filepath.Join(t.top, dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var names []string
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); (ext == ".yml" || ext == ".yaml") && !e.IsDir() {
				names = append(names, e.Name())
			}
		}
		if file != "" && !slices.Contains(names, file) {
			return nil, usagef("%s has no workflow %s; it has %s", filepath.Join(t.top, dir), file, strings.Join(names, ", "))
		}
		for _, name := range names {
			if file == "" || name == file {
				if files[name], err = readWorkflow(os.DirFS(t.top), dir+"/"+name); err != nil {
					return nil, err
				}
			}
		}
		return files, nil
	}
	return nil, usagef("%s has no workflows: none of %s is there", t.top, strings.Join(workflowDirs, ", "))
}

func mustAbs(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

func readWorkflow(in fs.FS, name string) ([]byte, error) {
	f, err := in.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(f, maxWorkflowFile+1))
	if err == nil && len(text) > maxWorkflowFile {
		err = fmt.Errorf("%s has more than %d bytes", name, maxWorkflowFile)
	}
	return text, err
}

// snapshot makes dir a copy of the tree: a repository with the last commit, or with all
// of them, and the files as they are now, but for those that git ignores.
func (t *workTree) snapshot(ctx context.Context, dir string, history bool) error {
	args := []string{"init", "--quiet", dir}
	if t.commit != "" {
		args = []string{"clone", "--quiet", "--no-checkout", "--depth=1", "file://" + t.top, dir}
		if history {
			args = slices.DeleteFunc(args, func(a string) bool { return a == "--depth=1" })
		}
	}
	if _, err := t.git(ctx, args...); err != nil {
		return fmt.Errorf("copying the repository: %w", err)
	}
	if t.commit != "" {
		_, err := gitIn(ctx, dir, "read-tree", "HEAD")
		if err == nil {
			_, err = gitIn(ctx, dir, "remote", "remove", "origin")
		}
		if err != nil {
			return fmt.Errorf("copying the repository: %w", err)
		}
	}
	all, err := t.git(ctx, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return err
	}
	from, err := os.OpenRoot(t.top)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // only read
	to, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer to.Close() //nolint:errcheck // a directory
	inTree := map[string]bool{".": true}
	for name := range strings.SplitSeq(all, "\x00") {
		if name == "" || !isDir(from, filepath.Dir(name), inTree) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := copyFile(from, to, name); err != nil {
			return fmt.Errorf("copying %s: %w", name, err)
		}
	}
	return nil
}

// isDir tells whether name is a directory and no link leads there: below a link git knows
// of files that are not there any more. known is what was found before.
func isDir(root *os.Root, name string, known map[string]bool) bool {
	is, ok := known[name]
	if !ok {
		if isDir(root, filepath.Dir(name), known) {
			info, err := root.Lstat(name)
			is = err == nil && info.IsDir()
		}
		known[name] = is
	}
	return is
}

// copyFile copies a file or a link. Of submodules and other repositories within, which
// are directories to git, nothing comes along.
func copyFile(from, to *os.Root, name string) error {
	info, err := from.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeSymlink {
		return nil
	}
	if err != nil {
		return err
	}
	if err := to.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if info.Mode().Type() == fs.ModeSymlink {
		target, err := from.Readlink(name)
		if err != nil {
			return err
		}
		return to.Symlink(target, name)
	}
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	mode := fs.FileMode(0o644) // as git has it
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	out, err := to.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil // listed twice, in a merge that is not done
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(mode), out.Close())
}
