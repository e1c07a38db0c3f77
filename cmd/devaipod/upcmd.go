package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// An upping is what `devaipod up` is asked for.
type upping struct{ target, name, branch string }

func (a *app) upCmd() *cobra.Command {
	var u upping
	cmd := &cobra.Command{
		Use: "up [PATH|REPO]", Short: "Bring up a pod of your own, without an agent", Args: args(cobra.MaximumNArgs(1)),
		Long: `Bring up a pod for yourself: a clone of a repository of the forge in a container, with
the image and the network rules that agents have, and no agent. What is there already is
started again, so it can be said twice.

PATH is a checkout of a repository of the forge: its branch is taken. What it has and the
forge has not does not come along (devaipod cp brings files in). REPO is owner/name, for
its default branch. Without either it is the checkout here.

The pod is called owner/name@NAME, where NAME is made of the branch unless --name gives
it. It is removed by devaipod rm alone, which refuses while it holds what is nowhere else.

The pod may read the repository and not push. What you did there you fetch into a checkout
of yours, and push with your own credentials:

  git -c protocol.ext.allow=user fetch 'ext::devaipod exec -i ada/app@main -- %S /workspace/repo' main`,
		Example: `  devaipod up                          # this checkout's branch
  devaipod up ada/app --branch try-it  # a new branch, if the forge has none of that name
  devaipod attach ada/app@try-it`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			u.target = "."
			if len(rest) == 1 {
				u.target = rest[0]
			}
			return a.up(cmd.Context(), u)
		},
	}
	cmd.Flags().StringVar(&u.name, "name", "", "what to call it: small letters, digits and dashes (default: by its branch)")
	cmd.Flags().StringVar(&u.branch, "branch", "", "`branch` to work on (default: the checkout's, or the repository's default)")
	return a.jsonFlag(cmd)
}

func (a *app) up(ctx context.Context, u upping) error {
	repo, here, err := a.upTarget(ctx, u.target)
	if err != nil {
		return err
	}
	if here != "" && u.branch == "" {
		if u.branch, err = branchAt(ctx, here); err != nil {
			return err
		}
	}
	k := pods.Key{Name: u.name}
	k.Owner, k.Repo, _ = strings.Cut(repo, "/")
	order := workspaceOrder{Branch: u.branch}
	if k.Name == "" {
		branch := u.branch
		if branch == "" {
			if branch, err = a.defaultBranch(ctx, repo); err != nil {
				return err
			}
		}
		if k.Name = pods.WorkspaceName(branch); k.Name == "" {
			return usagef("the branch %q makes no name for a workspace: give one with --name", branch)
		}
	}
	if !pods.ValidName(k.Name) {
		return usagef("--name %q: want small letters, digits and dashes, beginning with a letter, 40 at most", k.Name)
	}
	order.GitName, order.GitEmail = a.whoami(ctx, here)
	var v workspaceView
	a.step("bringing up  %s", k)
	if err := a.api().send(ctx, workspacePath(k)+"/up", order, &v); err != nil {
		return err
	}
	p, err := a.placeIn(ctx, k, false)
	if err == nil {
		err = a.awaitClone(ctx, p)
	}
	if err != nil {
		return err
	}
	if v.Note != "" {
		a.step("note     %s", plain(v.Note, 2000))
	}
	if v.Full != "" {
		a.step("note     %s: make room there; it is stopped when it grows", v.Full)
	}
	setup := a.awaitSetup(ctx, p)
	return errors.Join(setup, a.tellUp(ctx, k, v, here))
}

// upTarget is the repository, and the directory of the checkout if it is one. A
// directory goes before a repository of the same name.
func (a *app) upTarget(ctx context.Context, target string) (repo, here string, err error) {
	info, err := os.Stat(target)
	if err == nil && !info.IsDir() {
		return "", "", usagef("%s is a file: want the directory of a checkout, or a repository as owner/name", target)
	}
	if err == nil {
		_, repo, err = a.remoteAt(ctx, target)
		return repo, target, err
	}
	if !repoRef.MatchString(target) || strings.HasPrefix(target, ".") {
		return "", "", usagef("there is no directory %s, and it names no repository: want the directory of a checkout, or owner/name", target)
	}
	return target, "", nil
}

// branchAt is the branch of a checkout.
func branchAt(ctx context.Context, dir string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", "symbolic-ref", "--quiet", "--short", "HEAD")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "", usagef("the checkout in %s is on no branch: name one with --branch", dir)
	}
	return strings.TrimSpace(string(out)), nil
}

func (a *app) defaultBranch(ctx context.Context, repo string) (string, error) {
	var answer struct {
		Branch string `json:"branch"`
	}
	err := a.api().get(ctx, "/api/repositories/"+repo+"/default-branch", &answer)
	if errors.Is(err, errNotFound) {
		return "", usagef("there is no repository %s on the forge: `devaipod forge add` brings one in", repo)
	}
	return answer.Branch, err
}

var ident = regexp.MustCompile(`^(.*) <(.*)> \d+ [+-]\d+$`)

// whoami is who the person's commits are by: git's own word, else the account's.
func (a *app) whoami(ctx context.Context, dir string) (name, email string) {
	cmd := exec.CommandContext(ctx, "git", "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT")
	cmd.Dir = dir
	if out, err := cmd.Output(); err == nil {
		if m := ident.FindStringSubmatch(strings.TrimSpace(string(out))); m != nil && m[1] != "" {
			return m[1], m[2]
		}
	}
	creds, err := a.readCredentials()
	if err != nil || creds.Person == "" {
		return "devaipod", "devaipod@noreply.localhost"
	}
	return creds.Person, creds.Person + "@noreply.localhost"
}

// awaitClone waits until a workspace has its clone.
func (a *app) awaitClone(ctx context.Context, p place) error {
	for told := false; ; told = true {
		_, err := p.podman.Stat(ctx, p.container, podfile.RepoDir+"/.git")
		there := err == nil
		if err != nil && !errors.Is(err, podman.ErrNoPath) {
			return err
		}
		st, err := p.podman.State(ctx, p.container)
		if err != nil {
			return err
		}
		if !st.Running {
			var log bytes.Buffer
			if err := p.podman.Logs(ctx, p.container, false, 5, &log); err != nil {
				return err
			}
			return fmt.Errorf("%s ended with code %d: %s", p, st.ExitCode, plain(strings.TrimSpace(log.String()), 2000))
		}
		if there {
			return nil
		}
		if !told {
			a.step("cloning  %s/%s", p.key.Owner, p.key.Repo)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// maxAwaited bounds what is said while a setup is waited for, in bytes.
const maxAwaited = 1 << 20

// awaitSetup waits until a workspace's lifecycle commands have run, as far as the
// repository has people wait for them. What went wrong there keeps nobody out.
func (a *app) awaitSetup(ctx context.Context, p place) error {
	s, err := p.start(ctx, podman.Command{Args: []string{podfile.BinaryPath, "await"}})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	defer s.Close() //nolint:errcheck // nothing is left to say there
	out, in := io.Pipe()
	var said bytes.Buffer
	go func() { in.CloseWithError(s.Copy(in, &said)) }()
	var at podfile.Awaited
	lines := json.NewDecoder(io.LimitReader(out, maxAwaited))
	for !at.Over {
		at = podfile.Awaited{}
		if err := lines.Decode(&at); err != nil {
			if errors.Is(err, io.EOF) { // it has ended
				if code, e := s.Wait(ctx); e == nil && code == codeUsage { // it knows no such word
					a.step("setup    not waited for: an older devaipod has made this pod")
					return nil
				}
			}
			err = errors.Join(ctx.Err(), out.CloseWithError(err), err)
			return fmt.Errorf("waiting for the setup of %s: %w: %s", p, err, plain(strings.TrimSpace(said.String()), 500))
		}
		if !at.Over {
			a.step("setup    %s", plain(at.Stage, 100))
		}
	}
	if at.Error == "" {
		return nil
	}
	what := fmt.Sprintf("the setup of %s ended early: %s", p, plain(at.Error, 1000))
	if at.Said != "" {
		what += "\nIt wrote at last:\n  " + strings.ReplaceAll(plain(at.Said, 2000), "\n", "\n  ")
	}
	if !at.Short { // what people wait for has run
		a.step("%s", what)
		return nil
	}
	return fmt.Errorf("%s\nThe workspace is up all the same. See to it there (devaipod attach %s) or in the repository; devaipod stop and up run it again", what, p.key)
}

// tellUp says what there is now, and what of the checkout is not there.
func (a *app) tellUp(ctx context.Context, k pods.Key, v workspaceView, here string) error {
	if here != "" && v.Made {
		if left := leftBehind(ctx, here); left != "" {
			a.step("not there  %s; push it first, or bring it in with devaipod cp", left)
		}
	}
	if a.asJSON {
		return a.printJSON(v)
	}
	a.step("up       %s on %s; devaipod attach %s opens a shell", k, plain(v.Branch, 100), k)
	_, err := fmt.Fprintln(a.out, k)
	return err
}

// leftBehind is what a checkout has and its remotes have not, in words.
func leftBehind(ctx context.Context, dir string) string {
	count := func(args ...string) int {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			return 0 // it is a hint, no more
		}
		return strings.Count(string(out), "\n")
	}
	var parts []string
	if n := count("rev-list", "HEAD", "--not", "--remotes"); n > 0 {
		parts = append(parts, fmt.Sprintf("%d commits of this checkout that are not pushed", n))
	}
	if n := count("status", "--porcelain"); n > 0 {
		parts = append(parts, fmt.Sprintf("%d changed files", n))
	}
	return strings.Join(parts, ", ")
}

func workspacePath(k pods.Key) string {
	return "/api/workspaces/" + url.PathEscape(k.Owner) + "/" + url.PathEscape(k.Repo) + "/" + url.PathEscape(k.Name)
}

// send posts a value and reads the answer.
func (c *apiClient) send(ctx context.Context, path string, v, answer any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	resp, err := c.doBody(ctx, http.MethodPost, path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(answer)
}

// knownWorkspace reads one, or says how to make it.
func (a *app) knownWorkspace(ctx context.Context, k pods.Key) (v workspaceView, err error) {
	return v, a.noWorkspace(k, a.api().get(ctx, workspacePath(k), &v))
}

func (a *app) noWorkspace(k pods.Key, err error) error {
	if errors.Is(err, errNotFound) {
		return fmt.Errorf("there is no workspace %s: devaipod list tells which there are, and devaipod up %s/%s --name %s makes it", k, k.Owner, k.Repo, k.Name)
	}
	return err
}

func (a *app) workspaceStatus(ctx context.Context, k pods.Key) error {
	v, err := a.knownWorkspace(ctx, k)
	if err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(v)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, r := range [][2]string{{"workspace", v.Name}, {"state", v.State}, {"branch", plain(v.Branch, 200)}, {"pod", v.Pod}} {
		fmt.Fprintf(w, "%s\t%s\n", r[0], r[1])
	}
	if v.Full != "" {
		fmt.Fprintf(w, "disk\t%s\n", v.Full)
	}
	if !v.Started.IsZero() {
		fmt.Fprintf(w, "started\t%s\n", v.Started.Local().Format(time.DateTime))
	}
	return w.Flush()
}

func (a *app) stopWorkspace(ctx context.Context, k pods.Key) error {
	if err := a.noWorkspace(k, a.api().post(ctx, workspacePath(k)+"/stop")); err != nil {
		return err
	}
	a.step("stopped  %s", k)
	return nil
}

// fetchWithin is how long a fetch may take that lets a workspace know what the forge
// has.
const fetchWithin = 30 * time.Second

func (a *app) rmWorkspace(ctx context.Context, k pods.Key, force bool) error {
	if !force {
		a.fetchThere(ctx, k)
	}
	if err := a.noWorkspace(k, a.api().post(ctx, fmt.Sprintf("%s/rm?force=%t", workspacePath(k), force))); err != nil {
		return err
	}
	a.step("removed  %s", k)
	return nil
}

// fetchThere brings a workspace that runs up to what the forge has, so that what was
// pushed from elsewhere does not count as its own. One that can't be is held for what
// it knew last.
func (a *app) fetchThere(ctx context.Context, k pods.Key) {
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	p, err := a.placeIn(ctx, k, false)
	if err != nil {
		return
	}
	s, err := p.start(ctx, podman.Command{Args: []string{"git", "-C", podfile.RepoDir, "fetch", "--quiet", "--all"}})
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	defer s.Close() //nolint:errcheck // nothing is left to say there
	err = s.Copy(io.Discard, io.Discard)
	if err == nil {
		_, err = s.Wait(ctx)
	}
	if err != nil {
		a.log.Debug("fetching in a workspace", "workspace", k.String(), "err", err)
	}
}
