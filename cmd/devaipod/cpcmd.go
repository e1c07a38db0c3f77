package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

func (a *app) cpCmd() *cobra.Command {
	var agent bool
	cmd := &cobra.Command{
		Use: "cp POD:PATH LOCAL | LOCAL POD:PATH", Short: "Copy files out of a pod's workspace, or into it", Args: args(cobra.ExactArgs(2)),
		Long: `Copy a file or a directory between this machine and the workspace of a pod, or with
--agent where its agent works; the pod need not run. A PATH in the pod begins in the clone
unless it begins with a slash. As with cp -r, what is copied to a directory that is there
goes into it, by its own name; DIR/. is what a directory holds. LOCAL of - is a tar stream
on standard input or output. A local path with a colon in it begins with ./ or /.

What comes out of a pod is not trusted: nothing is written outside of LOCAL, symlinks there
that lead out of it are not followed, and devices, pipes, sockets, and symlinks that would
lead out are left out and told of (exit code 1). Files are yours, without setuid bits.`,
		Example: `  devaipod cp ada/app@main:report.html .
  devaipod cp fixtures ada/app@main:test/
  devaipod cp --agent ada/app#3:/workspace/repo - | tar t`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			return a.cp(cmd.Context(), rest[0], rest[1], agent)
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			var out []string
			for _, name := range a.podNames(cmd) {
				name, _, _ = strings.Cut(name, "\t")
				out = append(out, name+":")
			}
			return out, cobra.ShellCompDirectiveNoSpace
		},
	}
	cmd.Flags().BoolVar(&agent, "agent", false, "the agent's files instead of the workspace's")
	return cmd
}

// podPath splits POD:PATH; ok is false for a local path.
func (a *app) podPath(s string) (pod, inPod string, ok bool) {
	if s == "-" || strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		return "", "", false
	}
	rest, prefix := s, ""
	if after, isURL := strings.CutPrefix(s, a.cfg.forgeURL()); isURL {
		rest, prefix = after, a.cfg.forgeURL()
	}
	pod, inPod, ok = strings.Cut(rest, ":")
	return prefix + pod, inPod, ok
}

func (a *app) cp(ctx context.Context, from, to string, agent bool) error {
	fromPod, fromPath, out := a.podPath(from)
	toPod, toPath, in := a.podPath(to)
	if out == in {
		return usagef("one of %q and %q has to be in a pod, as POD:PATH, and the other here", from, to)
	}
	pod, inPod := toPod, toPath
	if out {
		pod, inPod = fromPod, fromPath
	}
	if inPod == "" {
		return usagef("%s: names no path: %s:. is the clone", pod, pod)
	}
	if !strings.HasPrefix(inPod, "/") {
		inPod = podfile.RepoDir + "/" + inPod
	}
	p, err := a.placeOf(ctx, pod, agent)
	if err != nil {
		return err
	}
	if out {
		err = a.cpOut(ctx, p, inPod, to)
	} else {
		var leave func()
		if leave, err = a.enter(ctx, p); err == nil {
			defer leave()
			err = a.cpIn(ctx, p, from, inPod)
		}
	}
	if errors.Is(err, podman.ErrNoPath) {
		if st, e := p.podman.State(ctx, p.container); e == nil && !st.Exists {
			return p.explain(podman.ErrNotRunning)
		}
	}
	return err
}

// contents tells whether a path means what a directory holds.
func contents(path string) bool {
	return path == "." || path == ".." || strings.HasSuffix(path, "/.") || strings.HasSuffix(path, "/..")
}

// cpOut copies out of a pod.
func (a *app) cpOut(ctx context.Context, p place, inPod, to string) error {
	mode, err := p.podman.Stat(ctx, p.container, path.Clean(inPod))
	if err != nil {
		return fmt.Errorf("copying from %s: %w", p, err)
	}
	body, err := p.podman.ReadArchive(ctx, p.container, path.Clean(inPod))
	if err != nil {
		return fmt.Errorf("copying from %s: %w", p, err)
	}
	defer body.Close()
	if to == "-" {
		if _, err := io.Copy(a.out, body); err != nil {
			return fmt.Errorf("copying %s from %s: %w", inPod, p, err)
		}
		return nil
	}
	dir, name, err := target(to, path.Base(path.Clean(inPod)), mode.IsDir(), contents(inPod))
	if err != nil {
		return err
	}
	left, err := unpack(body, dir, name)
	if err != nil {
		return fmt.Errorf("copying %s from %s: %w", inPod, p, err)
	}
	return a.tellLeft(left, fmt.Sprintf("of the files of %s were left out; the others are here", inPod))
}

// leftOut is what was not copied: how many, and the first of them with the reason.
type leftOut struct {
	n     int
	first []string
}

func (l *leftOut) add(name, why string) {
	const most = 20
	if l.n++; l.n <= most {
		l.first = append(l.first, fmt.Sprintf("%q: %s", name, why))
	}
}

// tellLeft is an error when something was left out.
func (a *app) tellLeft(l leftOut, words string) error {
	for _, one := range l.first {
		a.step("left out  %s", plain(one, 1000))
	}
	if l.n == 0 {
		return nil
	}
	return fmt.Errorf("%d %s", l.n, words)
}

// target says into which directory, and by which name there, something goes that is
// copied to a local path; a name of "." is the directory itself.
func target(to, base string, isDir, contents bool) (dir, name string, err error) {
	info, err := os.Stat(to)
	switch {
	case err == nil && info.IsDir():
		if contents || base == "/" || base == "." {
			return to, ".", nil
		}
		return to, base, nil
	case err == nil && isDir:
		return "", "", usagef("%s is a file, and what is copied is a directory", to)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", "", err
	case err != nil && !isDir && strings.HasSuffix(to, "/"):
		return "", "", usagef("there is no directory %s", to)
	}
	dir, name = filepath.Split(filepath.Clean(to))
	if dir == "" {
		dir = "."
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", "", usagef("there is no directory %s to copy to", dir)
	}
	return dir, name, nil
}

// maxMode are the bits that a file may get.
const maxMode = 0o755

// unpack unpacks a hostile tar below dir, its first element under another name. It
// returns what is left out, and why.
func unpack(archive io.Reader, dir, name string) (left leftOut, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return left, err
	}
	defer root.Close()                //nolint:errcheck // nothing was written by it
	modes := map[string]fs.FileMode{} // of directories, set once they are full
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return left, setModes(root, modes)
		}
		if err != nil {
			return left, fmt.Errorf("reading the archive: %w", err)
		}
		to, ok := renamed(h.Name, name)
		if !ok {
			left.add(h.Name, "a name that leads out")
			continue
		}
		why, err := unpackOne(root, r, h, to, name, modes)
		if err != nil {
			return left, err
		}
		if why != "" {
			left.add(h.Name, why)
		}
	}
}

// renamed is an archive's name below the target. The first element is what was asked
// for, whatever it is called there.
func renamed(entry, name string) (string, bool) {
	clean := path.Clean(strings.TrimSuffix(entry, "/"))
	if path.IsAbs(clean) {
		clean = strings.TrimPrefix(clean, "/")
	}
	_, rest, _ := strings.Cut(clean, "/")
	to := filepath.Join(name, filepath.FromSlash(rest))
	return to, clean != ".." && !strings.HasPrefix(clean, "../") && filepath.IsLocal(to)
}

// unpackOne makes one entry; why says why it is left out.
func unpackOne(root *os.Root, r io.Reader, h *tar.Header, to, name string, modes map[string]fs.FileMode) (why string, err error) {
	if !realDirs(root, to) {
		return "its directory is a symlink, or not there", nil
	}
	mode := fs.FileMode(h.Mode) & maxMode //nolint:gosec // masked
	switch h.Typeflag {
	case tar.TypeDir:
		err := root.Mkdir(to, 0o700)
		if errors.Is(err, fs.ErrExist) {
			if info, e := root.Stat(to); e == nil && info.IsDir() {
				return "", nil // with the mode that it has
			}
			err = fmt.Errorf("%s is there, and no directory", to)
		}
		modes[to] = mode | 0o700
		return "", err
	case tar.TypeReg:
		return "", unpackFile(root, r, to, mode)
	case tar.TypeSymlink:
		if !within(to, h.Linkname, name) {
			return "a symlink that leads out, to " + h.Linkname, nil
		}
		if err := makeRoom(root, to); err != nil {
			return "", err
		}
		return "", root.Symlink(h.Linkname, to)
	case tar.TypeLink:
		old, ok := renamed(h.Linkname, name)
		if !ok {
			return "a link that leads out", nil
		}
		if info, err := root.Lstat(old); err != nil || !info.Mode().IsRegular() {
			return "a link to what was not copied", nil //nolint:nilerr // it is told
		}
		if err := makeRoom(root, to); err != nil {
			return "", err
		}
		return "", root.Link(old, to)
	}
	return "neither a file, nor a directory, nor a symlink", nil
}

// within tells whether a symlink leads to something that is copied with it.
func within(at, link, name string) bool {
	up := true
	for part := range strings.SplitSeq(link, "/") {
		if part == ".." && !up {
			return false // what is named before it may be a symlink itself
		}
		up = up && (part == ".." || part == "." || part == "")
	}
	if filepath.IsAbs(link) {
		return false
	}
	leads := filepath.Join(filepath.Dir(at), link)
	if name != "." && leads != name && !strings.HasPrefix(leads, name+string(filepath.Separator)) {
		return false
	}
	return filepath.IsLocal(leads)
}

// realDirs tells whether what is above a path are directories, and no symlinks: where
// a symlink leads that is made there can be told then.
func realDirs(root *os.Root, to string) bool {
	for dir := filepath.Dir(to); dir != "."; dir = filepath.Dir(dir) {
		if info, err := root.Lstat(dir); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// makeRoom removes what is in a new file's place, if it is no directory: nothing is
// written through a symlink.
func makeRoom(root *os.Root, to string) error {
	info, err := root.Lstat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory, and what is copied is none", to)
	}
	return root.Remove(to)
}

func unpackFile(root *os.Root, r io.Reader, to string, mode fs.FileMode) error {
	if err := makeRoom(root, to); err != nil {
		return err
	}
	f, err := root.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

func setModes(root *os.Root, modes map[string]fs.FileMode) error {
	var err error
	for dir, mode := range modes {
		err = errors.Join(err, root.Chmod(dir, mode))
	}
	return err
}

// cpIn copies into a pod.
func (a *app) cpIn(ctx context.Context, p place, from, inPod string) error {
	clean := path.Clean(inPod)
	mode, err := p.podman.Stat(ctx, p.container, clean)
	if err != nil && !errors.Is(err, podman.ErrNoPath) {
		return err
	}
	isThere := err == nil
	if from == "-" {
		if !isThere || !mode.IsDir() {
			return usagef("%s has no directory %s to unpack a tar stream in", p, clean)
		}
		return a.copying(p, p.podman.WriteArchive(ctx, p.container, clean, a.in))
	}
	info, err := os.Stat(from)
	if err != nil {
		return &exitError{codeUsage, err}
	}
	dir, name := path.Split(clean)
	switch {
	case isThere && mode.IsDir():
		dir, name = clean, filepath.Base(from)
		if contents(from) {
			name = "."
		}
	case isThere && info.IsDir():
		return usagef("%s is a file in %s, and %s is a directory", clean, p, from)
	case !isThere && !info.IsDir() && strings.HasSuffix(inPod, "/"):
		return usagef("%s has no directory %s", p, clean)
	}
	if name == ".." || name == "/" {
		return usagef("%s has no name to copy it by: copy %s/. ", from, from)
	}
	r, w := io.Pipe()
	packed := make(chan leftOut, 1)
	go func() {
		left, err := pack(w, from, name)
		w.CloseWithError(err)
		packed <- left
	}()
	err = p.podman.WriteArchive(ctx, p.container, dir, r)
	_ = r.CloseWithError(io.ErrClosedPipe) // if podman has not read it all
	left := <-packed
	if err != nil {
		return a.copying(p, err)
	}
	return a.tellLeft(left, fmt.Sprintf("of the files of %s were left out; the others are in %s", from, p))
}

func (a *app) copying(p place, err error) error {
	if err != nil {
		return fmt.Errorf("copying to %s: %w", p, err)
	}
	return nil
}

// pack writes a tar of a local path, under another name. It returns what is left out.
func pack(to io.Writer, from, name string) (left leftOut, err error) {
	w := tar.NewWriter(to)
	from = filepath.Clean(from)
	if resolved, err := filepath.EvalSymlinks(from); err == nil {
		from = resolved // the one that was named; those below stay symlinks
	}
	err = filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() && !info.IsDir() && info.Mode()&fs.ModeSymlink == 0 {
			left.add(file, "neither a file, nor a directory, nor a symlink")
			return nil
		}
		return packOne(w, file, path.Join(name, filepath.ToSlash(rel)), info)
	})
	return left, errors.Join(err, w.Close())
}

func packOne(w *tar.Writer, file, name string, info fs.FileInfo) error {
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname = name, 0, 0, "", "" // whose it is there, podman says
	h.Mode &= maxMode
	if info.IsDir() {
		h.Name += "/"
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(w, f, h.Size) // as it was when it was looked at
	return err
}
