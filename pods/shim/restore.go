package shim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// An agent's fresh clone begins with what was saved of an earlier pod of its
// issue: its commits, branches and newest stash, and the working tree, in which
// what was not committed is not committed again. What was in the index alone is
// not known: it was never saved.
//
// All of it was written by an agent. No hook, filter or submodule of it is run,
// and no configuration is read but our own: see restoreEnv.

// A restoreError tells that what was saved did not come back, with the gate and
// the repository in reach.
type restoreError struct{ err error }

func (e *restoreError) Error() string { return "restoring what was saved: " + e.err.Error() }

func (e *restoreError) Unwrap() error { return e.err }

// maxRestores bounds how often that is tried before the agent begins without.
const maxRestores = 3

// bundlePath is where the bundle is, while a clone is being made.
func (c *Config) bundlePath() string { return c.RepoDir + ".new.bundle" }

// fetchSaved gets what was saved, and tells whether there is anything. An error
// that is no restoreError is of a gate or service that is away.
func (c *Config) fetchSaved(ctx context.Context) (found bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.GateAddr+podfile.RestorePath, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return false, fmt.Errorf("asking for what was saved: %w", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return false, nil
	default:
		said, err := io.ReadAll(io.LimitReader(resp.Body, 500))
		err = errors.Join(fmt.Errorf("the gate answered %s: %q", resp.Status, said), err)
		if resp.StatusCode == http.StatusBadGateway {
			return false, fmt.Errorf("asking for what was saved: %w", err)
		}
		return false, &restoreError{err}
	}
	f, err := os.Create(c.bundlePath())
	if err != nil {
		return false, &restoreError{err}
	}
	_, err = io.Copy(f, resp.Body)
	if err := errors.Join(err, f.Close()); err != nil {
		return false, &restoreError{err}
	}
	return true, nil
}

// A bundle is one that was read up to its pack (gitformat-bundle(5)).
type bundle struct {
	refs map[string]string // ids by name, below refs/saved/ISSUE/
	pack io.Reader
}

// maxHead bounds what comes before the pack, in bytes.
const maxHead = 64 << 20

// readBundle reads a bundle's head. The commits that it lists as its prerequisites
// are not looked at: git finds out whether something is missing.
func readBundle(f io.Reader) (*bundle, error) {
	r := bufio.NewReaderSize(f, 64<<10)
	b := &bundle{refs: map[string]string{}, pack: r}
	for first, left := true, maxHead; ; first = false {
		line, err := r.ReadSlice('\n')
		if left -= len(line); err == nil && left < 0 {
			err = errors.New("its head is too long")
		}
		if err != nil {
			return nil, fmt.Errorf("it is no bundle: %w", err)
		}
		text := string(line[:len(line)-1])
		id, name, _ := strings.Cut(text, " ")
		switch {
		case first && text == "# v2 git bundle":
		case !first && text == "":
			return b, nil
		case !first && strings.HasPrefix(text, "-"):
		case !first && validID(id) && savedName(name) != "":
			b.refs[savedName(name)] = id
		default:
			return nil, fmt.Errorf("it is no bundle of what was saved: %.100q", text)
		}
	}
}

// savedName is what follows refs/saved/ISSUE/ in a ref's name, "" for another.
func savedName(ref string) string {
	rest, saved := strings.CutPrefix(ref, "refs/saved/")
	issue, name, _ := strings.Cut(rest, "/")
	if !saved || issue == "" || strings.Trim(issue, "0123456789") != "" {
		return ""
	}
	return name
}

func validID(s string) bool {
	return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == "" && strings.Trim(s, "0") != ""
}

// strict is how git checks what was saved: as a saver does that took commits, and
// without a look at .gitmodules, which savers take as they are. No submodule is
// used here, and whoever uses one later looks again.
const strict = "--strict=" +
	"gitmodulesMissing=ignore,gitmodulesBlob=ignore,gitmodulesLarge=ignore,gitmodulesName=ignore,gitmodulesUrl=ignore,gitmodulesPath=ignore," +
	"gitmodulesUpdate=ignore,gitmodulesParse=ignore," +
	"zeroPaddedFilemode=ignore,badTimezone=ignore,badDate=ignore,badEmail=ignore,badName=ignore,missingEmail=ignore," +
	"missingNameBeforeEmail=ignore,missingSpaceBeforeDate=ignore,missingSpaceBeforeEmail=ignore,multipleAuthors=ignore," +
	"nullSha1=ignore,missingTaggerEntry=ignore"

// A restorer brings what was saved into a clone that nothing was checked out in.
type restorer struct {
	c       *Config
	dir     string
	borrows bool // the clone does
	refs    map[string]string
	last    podfile.Snapshot
	tree    string // of the newest snapshot
}

// restore makes the clone in dir what was saved, from the bundle that fetchSaved
// has got. done is false, and nothing is changed, when the branch base has all of
// it.
func (c *Config) restore(ctx context.Context, dir string, borrows bool) (done bool, err error) {
	f, err := os.Open(c.bundlePath())
	if err != nil {
		return false, err
	}
	defer f.Close()
	b, err := readBundle(f)
	if err != nil {
		return false, err
	}
	r := &restorer{c: c, dir: dir, borrows: borrows, refs: b.refs}
	if err := r.git(ctx, b.pack, nil, "index-pack", "--stdin", "--fix-thin", strict); err != nil {
		return false, fmt.Errorf("unpacking it: %w", err)
	}
	if err := r.read(ctx); err != nil {
		return false, err
	}
	news, err := r.news(ctx)
	if err != nil || !news {
		return false, err
	}
	for _, step := range []func(context.Context) error{r.branches, r.files, r.unsaved, r.stash} {
		if err := step(ctx); err != nil {
			return false, err
		}
	}
	c.Log.Info("this clone begins with what an earlier pod of the issue has saved", "snapshot", r.refs["work"], "branch", r.last.Branch, "head", r.last.Head)
	return true, nil
}

// read makes sure that all that was saved is here, and reads the newest snapshot.
func (r *restorer) read(ctx context.Context) error {
	var ids strings.Builder
	for _, id := range r.refs {
		ids.WriteString(id + "\n")
	}
	if err := r.git(ctx, strings.NewReader(ids.String()), nil, "rev-list", "--objects", "--quiet", "--stdin", "--not", "--remotes"); err != nil {
		return fmt.Errorf("it is not whole: %w", err)
	}
	work, ok := r.refs["work"]
	if !ok {
		return errors.New("there is no snapshot in it")
	}
	text, err := r.output(ctx, "cat-file", "commit", work)
	if err != nil {
		return err
	}
	_, message, _ := strings.Cut(text, "\n\n")
	_, body, _ := strings.Cut(message, "\n\n")
	if err := json.Unmarshal([]byte(body), &r.last); err != nil {
		return fmt.Errorf("reading the snapshot %s: %w", work, err)
	}
	if r.last.Head == "" { // it could not be saved
		r.last.Branch = r.c.Branch
		if r.last.Head, err = r.output(ctx, "rev-parse", "--verify", "--quiet", r.c.start(ctx, r.dir)); err != nil {
			return err
		}
	}
	if !validID(r.last.Head) {
		return fmt.Errorf("reading the snapshot %s: HEAD was %.100q", work, r.last.Head)
	}
	r.tree, err = r.output(ctx, "rev-parse", "--verify", "--quiet", work+"^{tree}")
	return err
}

// news tells whether anything was saved that the branch base lacks: after a merge
// of all of it, work begins from there.
func (r *restorer) news(ctx context.Context) (bool, error) {
	tree, err := r.output(ctx, "rev-parse", "--verify", "--quiet", r.last.Head+"^{tree}")
	if err != nil {
		return false, err
	}
	if r.refs["stash/newest"] != "" || r.tree != tree {
		return true, nil
	}
	args := []string{"rev-list", "--max-count=1", r.last.Head}
	for name, id := range r.refs {
		if strings.HasPrefix(name, "heads/") {
			args = append(args, id)
		}
	}
	out, err := r.output(ctx, append(args, "^refs/remotes/origin/"+r.c.Base)...)
	return out != "", err
}

// branches makes the clone's branches those that were saved, and HEAD what it was.
func (r *restorer) branches(ctx context.Context) error {
	// Out of the way of others, such as one that is called BASE/x.
	if err := r.git(ctx, nil, nil, "update-ref", "--no-deref", "HEAD", r.last.Head); err != nil {
		return err
	}
	if err := r.git(ctx, nil, nil, "update-ref", "-d", "refs/heads/"+r.c.Base); err != nil {
		return err
	}
	var updates bytes.Buffer
	for name, id := range r.refs {
		branch, ok := strings.CutPrefix(name, "heads/")
		if ok && branch != r.last.Branch {
			fmt.Fprintf(&updates, "update refs/heads/%s\x00%s\x00\x00", branch, id)
		}
	}
	if r.last.Branch != "" {
		fmt.Fprintf(&updates, "update refs/heads/%s\x00%s\x00\x00", r.last.Branch, r.last.Head)
	}
	if err := r.git(ctx, &updates, nil, "update-ref", "-z", "--stdin"); err != nil {
		return fmt.Errorf("its branches: %w", err)
	}
	if r.last.Branch == "" {
		return nil
	}
	return r.git(ctx, nil, nil, "symbolic-ref", "HEAD", "refs/heads/"+r.last.Branch)
}

// files makes the working tree that of the snapshot, byte for byte, and the index
// that of HEAD. The saver takes files as they are on disk, so no attribute of
// theirs counts (gitattributes(5)).
func (r *restorer) files(ctx context.Context) error {
	attributes := filepath.Join(r.dir, ".git", "info", "attributes")
	if err := os.MkdirAll(filepath.Dir(attributes), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(attributes, []byte("* -text !eol -ident -filter !working-tree-encoding\n"), 0o644); err != nil {
		return err
	}
	if err := r.git(ctx, nil, nil, "read-tree", "--reset", "-u", r.tree); err != nil {
		return fmt.Errorf("its files: %w", err)
	}
	if err := os.Remove(attributes); err != nil {
		return err
	}
	if r.borrows {
		if err := settle(ctx, r.dir); err != nil {
			return err
		}
	}
	return r.git(ctx, nil, nil, "reset", "--quiet", "--mixed")
}

// unsaved checks out what is in HEAD and could not be saved, as one that is too
// large: that it is not in the snapshot does not mean that it was removed. So are
// submodules' folders.
func (r *restorer) unsaved(ctx context.Context) error {
	out, err := r.output(ctx, "ls-files", "-z", "--deleted", "--stage")
	if err != nil {
		return err
	}
	var paths strings.Builder
	for entry := range strings.SplitSeq(out, "\x00") {
		mode, path, ok := strings.Cut(entry, "\t")
		if ok && (strings.HasPrefix(mode, "160000 ") || slices.ContainsFunc(r.last.NotSaved, covers(path))) {
			paths.WriteString(path + "\x00")
		}
	}
	if paths.Len() == 0 {
		return nil
	}
	if err := r.git(ctx, strings.NewReader(paths.String()), nil, "checkout-index", "--quiet", "-u", "-z", "--stdin"); err != nil {
		r.c.Log.Warn("files that were not saved and are in HEAD look deleted", "err", err)
	}
	return ctx.Err()
}

// covers tells which entries are about a path: it, or a folder that it is in.
func covers(path string) func(podfile.NotSaved) bool {
	return func(n podfile.NotSaved) bool {
		of := n.Path
		if n.Raw != nil {
			of = string(n.Raw)
		}
		of = strings.TrimSuffix(of, "/")
		return n.Why != podfile.WhyIgnored && (path == of || strings.HasPrefix(path, of+"/"))
	}
}

// stash has the newest stash again.
func (r *restorer) stash(ctx context.Context) error {
	id := r.refs["stash/newest"]
	if id == "" {
		return nil
	}
	return r.git(ctx, nil, nil, "stash", "store", "--quiet", "--message", "Restored by devaipod", id)
}

// restoreSettings are all that git is configured by while it restores, beside what
// the clone's own file has, which git clone has just written.
var restoreSettings = []string{
	"core.hooksPath=/dev/null", "core.fsmonitor=false", "core.attributesFile=/dev/null", "core.symlinks=true", "core.fileMode=true",
	"core.protectNTFS=true", "core.protectHFS=true",
	"submodule.recurse=false", "protocol.allow=never", "gc.auto=0", "maintenance.auto=false", "advice.detachedHead=false",
	"safe.directory=*", "user.name=devaipod", "user.email=devaipod@localhost",
}

// restoreEnv is git's whole environment.
func (c *Config) restoreEnv() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=/nonexistent",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1", "GIT_NO_REPLACE_OBJECTS=1", "GIT_TERMINAL_PROMPT=0",
		fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(restoreSettings)),
	}
	for i, kv := range restoreSettings {
		k, v, _ := strings.Cut(kv, "=")
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, k), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, v))
	}
	return env
}

// git runs git in the clone; what it complains of is in the error.
func (r *restorer) git(ctx context.Context, in io.Reader, out io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, "git", args...)
	var said bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = r.dir, r.c.restoreEnv(), in, out, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("git %s: %w: %.500q", args[0], err, strings.TrimSpace(said.String()))
	}
	return nil
}

// output is what git prints, without the last line's end.
func (r *restorer) output(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	err := r.git(ctx, nil, &out, args...)
	return strings.TrimSuffix(out.String(), "\n"), err
}
