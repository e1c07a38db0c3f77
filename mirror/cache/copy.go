package cache

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// What lets a repository of a host of our own follow one of the cache: a look at
// both, and a push out of the cache. To where it comes from nothing is pushed by it:
// that is [Cache.Export]'s alone.

// Errors of [Cache.Sync] and [Cache.Ask] that a caller decides on, beside
// [RefusedError].
var (
	ErrUnauthorized = errUnauthorized
	ErrNoRepository = errNotFound
)

// Refs are those of a repository.
type Refs struct {
	Head string            // the branch that HEAD names, "main", born or not; empty for none
	IDs  map[string]string // object ids by full names, "refs/heads/main"
}

// A Login is an account at a host.
type Login struct{ User, Password string }

// Refs are those of a repository that is here, as of the last [Cache.Sync]: its
// HEAD, and what the patterns name, "refs/heads/main" or "refs/tags/".
// [ErrNotHere] when it is not here. It counts as read.
func (c *Cache) Refs(ctx context.Context, addr Address, patterns ...string) (Refs, error) {
	r := c.repo(addr)
	if _, ok, err := r.load(); err != nil {
		return Refs{}, err
	} else if !ok {
		return Refs{}, ErrNotHere
	}
	if err := r.touch("used"); err != nil {
		return Refs{}, err
	}
	var list, head bytes.Buffer
	args := append([]string{"for-each-ref", "--format=%(objectname)%09%(refname)"}, patterns...)
	if err := (gitproc.Child{Dir: r.git(), Args: args, Stdout: &list}).Run(ctx); err != nil {
		r.doubt(err)
		return Refs{}, err
	}
	refs := readRefs(&list)
	if err := (gitproc.Child{Dir: r.git(), Args: []string{"symbolic-ref", "--quiet", "HEAD"}, Stdout: &head}).Run(ctx); err != nil && exitCode(err) != 1 {
		return Refs{}, err
	}
	refs.Head = strings.TrimPrefix(strings.TrimSpace(head.String()), "refs/heads/")
	return refs, nil
}

// Ask lists the refs that a repository has upstream, just now, for an account
// there; nothing of it comes here. The patterns are git ls-remote's.
func (c *Cache) Ask(ctx context.Context, addr Address, as Login, patterns ...string) (Refs, error) {
	u, err := c.upstream(addr)
	if err != nil {
		return Refs{}, err
	}
	way := c.way(ctx, u, basicAuth(as.User, as.Password))
	defer way.close()
	var list bytes.Buffer
	args := append([]string{"ls-remote", "--symref", "--quiet", "upstream", "HEAD"}, patterns...)
	if err := way.run(ctx, gitproc.Child{Args: args, Stdout: &list}); err != nil {
		return Refs{}, err
	}
	return readRefs(&list), nil
}

// readRefs reads lines of an id, a tab and a name, as git ls-remote writes them.
func readRefs(list *bytes.Buffer) Refs {
	refs := Refs{IDs: map[string]string{}}
	for line := range strings.Lines(list.String()) {
		id, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if to, ok := strings.CutPrefix(id, "ref: refs/heads/"); ok && name == "HEAD" {
			refs.Head = to
		} else if strings.HasPrefix(name, "refs/") && !strings.HasSuffix(name, "^{}") {
			refs.IDs[name] = id
		}
	}
	return refs
}

// Ancestor tells whether the commit old is reached from the commit new, in a
// repository that is here; one that is not here is not.
func (c *Cache) Ancestor(ctx context.Context, addr Address, old, new string) (bool, error) {
	r := c.repo(addr)
	err := (gitproc.Child{Dir: r.git(), Args: []string{"merge-base", "--is-ancestor", old, new}}).Run(ctx)
	if err == nil || exitCode(err) == 1 {
		return err == nil, nil
	}
	if e := (gitproc.Child{Dir: r.git(), Args: []string{"cat-file", "-e", old + "^{commit}"}}).Run(ctx); e != nil && ctx.Err() == nil {
		return false, nil // git says so of what is missing, too
	}
	r.doubt(err)
	return false, err
}

// Mentions tells whether the message of a commit that new reaches and old does
// not matches a pattern, git's extended regular expression.
func (c *Cache) Mentions(ctx context.Context, addr Address, old, new, pattern string) (bool, error) {
	var found bytes.Buffer
	err := gitproc.Child{Dir: c.repo(addr).git(), Args: []string{"log", "--max-count=1", "--format=%H", "--extended-regexp", "--grep=" + pattern, new, "^" + old}, Stdout: &found}.Run(ctx)
	return found.Len() > 0, err
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

var objectID = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// pushedAtOnce is how many refs one push has: they are on git's command line.
const pushedAtOnce = 500

// Push brings branches and tags (ids by full names) from one repository, which
// is here, to another at a host whose [Host.Push] is set, as an account there. A
// branch moves forward only, and a tag that is there stays: git itself looks
// again, and the other side takes a ref only if it is what git saw. What it took
// stays even if it refused others.
func (c *Cache) Push(ctx context.Context, from, to Address, as Login, refs map[string]string) error {
	u, err := c.upstream(to)
	if err != nil {
		return err
	}
	if !c.cfg.Hosts[to.Host].Push || !u.web() {
		return &RefusedError{What: to.String(), Why: "nothing is pushed to that host"}
	}
	var specs []string
	for _, name := range slices.Sorted(maps.Keys(refs)) {
		branchOrTag := strings.HasPrefix(name, "refs/heads/") || strings.HasPrefix(name, "refs/tags/")
		if !branchOrTag || strings.ContainsAny(name, ":*") || !objectID.MatchString(refs[name]) {
			return fmt.Errorf("%.200q at %.80q is no branch or tag to push", name, refs[name])
		}
		specs = append(specs, refs[name]+":"+name)
	}
	c.cfg.Pushes(ctx, to, refs, nil)
	for some := range slices.Chunk(specs, pushedAtOnce) {
		if e := c.pushSome(ctx, u, from, as, some); e != nil {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		c.cfg.Pushes(ctx, to, refs, err)
	}
	return err
}

func (c *Cache) pushSome(ctx context.Context, u upstream, from Address, as Login, specs []string) error {
	way := c.way(ctx, u, basicAuth(as.User, as.Password))
	defer way.close()
	way.session.push.Store(true)
	said, result := &gitproc.Tail{Max: 8192}, &bytes.Buffer{}
	args := append([]string{"push", "--porcelain", "--no-force", "--no-verify", "--no-recurse-submodules", "upstream"}, specs...)
	err := way.run(ctx, gitproc.Child{Dir: c.repo(from).git(), Args: args, Stdout: result, Stderr: said})
	refused := refusedRefs(result)
	if err == nil || len(refused) == 0 {
		return err
	}
	return fmt.Errorf("%w %s%s", ErrDeclined, strings.Join(refused, ", "), remoteWords(said))
}

// refusedRefs reads git push --porcelain: the names of refs that were not
// taken, with git's reason (git-push(1), OUTPUT).
func refusedRefs(result *bytes.Buffer) (refused []string) {
	const most = 3
	n := 0
	for lines := bufio.NewScanner(result); lines.Scan(); {
		col := strings.Split(lines.Text(), "\t")
		if len(col) != 3 || col[0] != "!" {
			continue
		}
		if n++; n <= most {
			_, name, _ := strings.Cut(col[1], ":")
			refused = append(refused, clip(gitproc.Printable(name))+" "+clip(gitproc.Printable(col[2])))
		}
	}
	if n > most {
		refused = append(refused, fmt.Sprintf("and %d more", n-most))
	}
	return refused
}

// remoteWords are what the other side said of it, in brackets.
func remoteWords(said *gitproc.Tail) string {
	var words []string
	for line := range strings.Lines(string(said.Bytes)) {
		if text, ok := strings.CutPrefix(line, "remote: "); ok && strings.TrimSpace(text) != "" {
			words = append(words, clip(gitproc.Printable(strings.TrimSpace(text))))
		}
	}
	if len(words) == 0 {
		return ""
	}
	words = slices.Compact(words)
	return " (" + strings.Join(words[:min(len(words), 3)], "; ") + ")"
}

// May is an error, a [RefusedError] mostly, where the rules let nothing be
// fetched from an address.
func (c *Cache) May(addr Address) error {
	_, err := c.upstream(addr)
	return err
}
