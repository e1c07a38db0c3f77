package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/follow"
)

func (a *app) forgeAddCmd() *cobra.Command {
	var opts addOptions
	cmd := &cobra.Command{
		Use: "add REPO", Short: "Bring a repository into the forge", Args: args(cobra.ExactArgs(1)),
		Long: `Copy a repository (a URL or a local path) into the forge: branches and tags, with
the labels, and the bot as a collaborator. A private one is read with your own git
credentials (git credential, ssh agent), which are not kept.

From then on a copy of a URL follows it: the default branch and new tags come from
there (devaipod forge sync does it now), and nobody but devaipod may push to the
default branch or merge into it on the forge. With --no-follow it is copied once,
and is yours to write.

On a forge that was joined (forge.url), the URL of a repository that it has already
readies that one: labels, and the bot as a collaborator.`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			return a.forgeAdd(cmd.Context(), rest[0], opts)
		},
	}
	cmd.Flags().StringVar(&opts.as, "as", "", "`OWNER/NAME` on the forge (default: you, and the name it has)")
	cmd.Flags().BoolVar(&opts.private, "private", false, "only those you let in may see it on the forge")
	cmd.Flags().BoolVar(&opts.noFollow, "no-follow", false, "copy it once: people merge and push on the forge")
	return a.jsonFlag(cmd)
}

// addOptions are the flags of forge add.
type addOptions struct {
	as                string
	private, noFollow bool
}

func (a *app) forgeAdd(ctx context.Context, source string, opts addOptions) error {
	source, err := upstream(source)
	if err != nil {
		return err
	}
	creds, err := a.readCredentials()
	if err != nil {
		return err
	}
	if repo, ok := a.repoOf(source); ok && opts.as == "" && a.cfg.joined() {
		return a.adopt(ctx, creds, repo)
	}
	as := opts.as
	if as == "" {
		as = creds.Person + "/" + repoName(source)
	}
	repo, err := forge.ParseRepo(as)
	if err != nil {
		return &exitError{codeUsage, fmt.Errorf("%w; name it with --as OWNER/NAME", err)}
	}
	client, err := a.personForge(creds)
	if err != nil {
		return err
	}
	if _, err := client.Repository(ctx, repo); err == nil {
		return &exitError{codeRefused, fmt.Errorf("%s is already on the forge (%s/%s); choose another name with --as, or let it follow an upstream: devaipod forge follow %s URL", repo, a.cfg.forgeURL(), repo, repo)}
	} else if !errors.Is(err, forge.ErrNotFound) {
		return unreachable(err)
	}
	dir, err := os.MkdirTemp(a.cfg.StateDir, "add-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // best effort; forge down --purge takes it too
	bare := filepath.Join(dir, "repo.git")
	a.step("reading  %s", source)
	if err := a.git(ctx, "", nil, "clone", "--bare", "--", source, bare); err != nil {
		return fmt.Errorf("reading %s: %w", source, err)
	}
	head, err := exec.CommandContext(ctx, "git", "-C", bare, "symbolic-ref", "--short", "HEAD").Output()
	if err != nil {
		return fmt.Errorf("%s has no default branch: %w", source, err)
	}
	info, err := a.addRepo(ctx, client, creds, repo, bare, strings.TrimSpace(string(head)), opts.private)
	if err != nil {
		return err
	}
	follows := ""
	if !opts.noFollow {
		if follows, err = a.followAdded(ctx, creds, info, source, strings.TrimSpace(string(head))); err != nil {
			return err
		}
	}
	return a.tellAdded(repo, info, follows)
}

// followAdded lets a copy follow what it was made from, if that can be; it
// returns what it follows, "" for nothing.
func (a *app) followAdded(ctx context.Context, creds credentials, info forge.RepoInfo, source, head string) (string, error) {
	addr, err := a.followed(source)
	if errors.Is(err, errLocal) {
		return "", nil
	}
	if err != nil {
		a.step("not followed: %v; when it can be: devaipod forge follow %s %s", err, info.Repo, plain(source, 200))
		return "", nil
	}
	service, err := a.serviceForge(creds)
	if err != nil {
		return "", err
	}
	rec := follow.Record{ID: info.ID, Repo: info.Repo.String(), Upstream: addr.String(), Branch: head}
	if err := a.letFollow(ctx, service, rec); err != nil {
		return "", err
	}
	a.tellFollows(rec)
	return rec.Upstream, nil
}

// adopt readies a repository that a joined forge has already.
func (a *app) adopt(ctx context.Context, creds credentials, name string) error {
	repo, err := forge.ParseRepo(name)
	if err != nil {
		return &exitError{codeUsage, err}
	}
	service, err := a.serviceForge(creds)
	if err != nil {
		return err
	}
	info, err := service.Repository(ctx, repo)
	if err != nil {
		return unreachable(err)
	}
	if err := prepareRepository(ctx, service, repo, a.cfg.labels()); err != nil {
		return err
	}
	return a.tellAdded(repo, info, "")
}

func (a *app) tellAdded(repo forge.Repo, info forge.RepoInfo, follows string) error {
	if a.asJSON {
		return a.printJSON(map[string]string{"repo": repo.String(), "url": info.HTMLURL, "clone_url": info.CloneURL, "follows": follows})
	}
	_, err := fmt.Fprintln(a.out, info.HTMLURL)
	return err
}

// addRepo makes the repository and pushes into it; when the push fails nothing
// stays behind.
func (a *app) addRepo(ctx context.Context, client *forge.Client, creds credentials, repo forge.Repo, bare, head string, private bool) (forge.RepoInfo, error) {
	info, _, err := client.CreateRepo(ctx, repo, private, head)
	if err != nil {
		return info, fmt.Errorf("making %s on the forge: %w", repo, err)
	}
	a.step("writing  %s/%s", a.cfg.forgeURL(), repo)
	auth := base64.StdEncoding.EncodeToString([]byte(creds.Person + ":" + creds.PersonToken))
	env := a.cfg.gitEnv("extraHeader", "Authorization: Basic "+auth)
	a.keepCopy(ctx, repo, creds.Person, nil)
	// The default branch goes first: the forge makes what comes first the default.
	for _, refs := range [][]string{{"refs/heads/" + head}, {"refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*"}} {
		if err := a.git(ctx, bare, env, append([]string{"push", a.cfg.forgeURL() + "/" + repo.String() + ".git"}, refs...)...); err != nil {
			a.keepCopy(ctx, repo, creds.Person, err)
			return info, errors.Join(fmt.Errorf("writing %s: %w", repo, err), client.DeleteRepo(context.WithoutCancel(ctx), repo))
		}
	}
	service, err := a.serviceForge(creds)
	if err != nil {
		return info, err
	}
	if err := prepareRepository(ctx, service, repo, a.cfg.labels()); err != nil {
		return info, err
	}
	return info, waitFilled(ctx, service, repo)
}

// waitFilled waits until the forge has taken note of a push: it calls a
// repository empty for a moment longer.
func waitFilled(ctx context.Context, client *forge.Client, repo forge.Repo) error {
	for range 100 {
		info, err := client.Repository(ctx, repo)
		if err != nil || !info.Empty {
			return err
		}
		sleep(ctx, 100*time.Millisecond)
	}
	return fmt.Errorf("%s has no branch that the forge shows: is the source empty?", repo)
}

// git runs git with its progress on stderr. Only transports that lead
// somewhere are allowed, and no hook of the person's runs.
func (a *app) git(ctx context.Context, dir string, env []string, args ...string) error {
	verb := args[0]
	opts := []string{"-c", "core.hooksPath=/dev/null", verb}
	if f, ok := a.errOut.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		opts = append(opts, "--progress")
	} else {
		opts = append(opts, "--quiet")
	}
	cmd := exec.CommandContext(ctx, "git", append(opts, args[1:]...)...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GIT_ALLOW_PROTOCOL=http:https:ssh:file:git"), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.errOut, a.errOut
	if f, ok := a.in.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		cmd.Stdin = nil
		cmd.Env = append(cmd.Env, "GIT_TERMINAL_PROMPT=0")
	}
	return cmd.Run()
}

var scpLike = regexp.MustCompile(`^[A-Za-z0-9._-]+@[A-Za-z0-9._-]+:[^:]+$`)

// upstream checks a repository's address: a URL git can fetch, or a local path.
func upstream(s string) (string, error) {
	u, err := url.Parse(s)
	switch {
	case s == "" || strings.HasPrefix(s, "-") || strings.Contains(s, "::"):
		return "", usagef("%q is no repository: give a URL (https, http, ssh, git, file) or a path", s)
	case scpLike.MatchString(s):
		return s, nil
	case err == nil && u.Scheme != "":
		if !strings.Contains(" http https ssh git file ", " "+u.Scheme+" ") {
			return "", usagef("%s: can't fetch from %s URLs; use https, http, ssh, git or file", s, u.Scheme)
		}
		if _, has := u.User.Password(); has {
			return "", usagef("%s has a password in it, which others could see: leave it out and let git ask (git help credential)", u.Redacted())
		}
		return s, nil
	}
	abs, err := filepath.Abs(s)
	if err != nil {
		return "", err
	}
	if st, err := os.Stat(abs); err != nil || !st.IsDir() {
		return "", usagef("%s is neither a URL nor a directory that is there", s)
	}
	return abs, nil
}

var notInName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// repoName is the last part of an address, as a repository's name.
func repoName(source string) string {
	name := path.Base(strings.TrimRight(strings.ReplaceAll(source, ":", "/"), "/"))
	name = strings.TrimSuffix(name, ".git")
	return strings.Trim(notInName.ReplaceAllString(name, "-"), "-.")
}
