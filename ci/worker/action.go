package worker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// defaultHost is where an action is that does not say.
const defaultHost = "github.com"

// actions fetches the repositories of remote actions, by git, from where spec says,
// without anybody's credentials. It is act's ActionCache, for one job.
type actions struct {
	dir, from, host string
}

func newActions(spec *job.Spec, dir string) *actions {
	host := defaultHost
	if u, err := url.Parse(text(spec.Github["gitea_default_actions_url"])); err == nil && u.Host != "" {
		host = u.Host
	}
	return &actions{dir: dir, from: strings.TrimSuffix(spec.Actions, "/"), host: host}
}

var (
	absolute = regexp.MustCompile(`^https?://([A-Za-z0-9.-]+(?::\d+)?)/([^/@]+/.*@.+)$`)
	named    = regexp.MustCompile(`^(?:([A-Za-z0-9.:-]+)\+)?([A-Za-z0-9_.-]+)/([A-Za-z0-9_.-]+)$`)
	refName  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./+-]*$`)
	byID     = regexp.MustCompile(`^[0-9a-f]{40}(?:[0-9a-f]{24})?$`)
)

// usable is what a step uses in the one form that act reads: HOST+OWNER/REPO@REF for
// https://HOST/OWNER/REPO@REF. Where the job begins with files, a checkout is act's.
func usable(uses string, local bool) string {
	m := absolute.FindStringSubmatch(uses)
	switch {
	case m == nil:
		return uses
	case local && strings.HasPrefix(m[2], "actions/checkout@"):
		return m[2]
	}
	return m[1] + "+" + m[2]
}

// Fetch brings ref of the action's repository, called cacheDir by act, and returns its
// commit. Nobody's token goes along, and the address is ours, not the one of act.
func (a *actions) Fetch(ctx context.Context, cacheDir, _, ref, _ string) (string, error) {
	m := named.FindStringSubmatch(cacheDir)
	if m == nil || m[2] == ".." || m[3] == ".." || m[2] == "." || m[3] == "." {
		return "", fmt.Errorf("the action %s: want OWNER/REPO@REF or https://HOST/OWNER/REPO@REF", cacheDir)
	}
	host := m[1]
	if host == "" {
		host = a.host
	}
	name := host + "/" + m[2] + "/" + strings.TrimSuffix(m[3], ".git")
	if !refName.MatchString(ref) || strings.Contains(ref, "..") {
		return "", fmt.Errorf("the action %s: %q names no branch, tag or commit", name, ref)
	}
	commit, err := a.fetch(ctx, a.repo(cacheDir), a.from+"/"+name+".git", ref)
	if err != nil {
		return "", fmt.Errorf("the action %s could not be fetched: %w; see that this repository and %s exist, and that %s can be reached from this machine", name+"@"+ref, err, ref, host)
	}
	return commit, nil
}

func (a *actions) fetch(ctx context.Context, repo, from, ref string) (string, error) {
	var out bytes.Buffer
	for _, args := range [][]string{
		{"init", "--quiet", "--bare", repo},
		{"--git-dir", repo, "fetch", "--quiet", "--depth=1", "--no-tags", from, ref},
		{"--git-dir", repo, "rev-parse", "--verify", "FETCH_HEAD^{commit}"},
	} {
		out.Reset()
		err := gitproc.Child{
			Args: args, Stdout: &out,
			// It goes with the job, and must come from where we ask.
			Config: []string{"core.fsync=none", "http.followRedirects=false", "protocol.https.allow=always"},
		}.Run(ctx)
		if err != nil {
			return "", err
		}
	}
	commit := strings.TrimSpace(out.String())
	if byID.MatchString(ref) && commit != ref {
		return "", fmt.Errorf("the commit %s came instead", commit)
	}
	return commit, nil
}

func (a *actions) repo(cacheDir string) string {
	return filepath.Join(a.dir, fmt.Sprintf("action-%x.git", sha256.Sum256([]byte(cacheDir))))
}

// GetTarArchive is a tar of the commit's files, of those below a folder, or of one file.
func (a *actions) GetTarArchive(ctx context.Context, cacheDir, commit, prefix string) (io.ReadCloser, error) {
	repo, prefix := a.repo(cacheDir), path.Clean(prefix)
	if prefix == "." {
		return archive(ctx, repo, commit+"^{tree}"), nil
	}
	var out bytes.Buffer
	if err := (gitproc.Child{Dir: repo, Args: []string{"ls-tree", "-z", commit, "--", prefix}, Stdout: &out}).Run(ctx); err != nil {
		return nil, err
	}
	entry, _, _ := strings.Cut(out.String(), "\x00")
	fields := strings.Fields(entry)
	switch {
	case len(fields) < 4:
		return nil, fs.ErrNotExist
	case fields[1] == "tree":
		return archive(ctx, repo, fields[2]), nil
	case fields[1] != "blob":
		return nil, fmt.Errorf("%s is a %s", prefix, fields[1])
	}
	blob := &gitproc.Tail{Max: maxAction} // more is no description of an action, and no YAML then
	if err := (gitproc.Child{Dir: repo, Args: []string{"cat-file", "blob", fields[2]}, Stdout: blob}).Run(ctx); err != nil {
		return nil, err
	}
	if fields[0] == "120000" {
		return tarOf(tar.Header{Typeflag: tar.TypeSymlink, Name: prefix, Linkname: string(blob.Bytes), Mode: 0o777}, nil)
	}
	return tarOf(tar.Header{Name: prefix, Mode: 0o644}, blob.Bytes)
}

// archive is a tar of a tree; git has seen to it that no name in it leads out of it
// (fetch.fsckObjects).
func archive(ctx context.Context, repo, tree string) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		err := gitproc.Child{Dir: repo, Args: []string{"archive", "--format=tar", tree}, Stdout: w}.Run(ctx)
		if errors.Is(err, io.ErrClosedPipe) {
			err = nil // enough was read
		}
		w.CloseWithError(err)
	}()
	return r
}
