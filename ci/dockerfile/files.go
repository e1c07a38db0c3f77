package dockerfile

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// Bounds of a build's files.
const (
	maxFiles  = 65_536
	maxName   = 1024 // bytes
	maxIgnore = 256  // lines of a .dockerignore
	maxLinks  = 40   // symlinks on the way to a file
)

// Files are a tar in a file of this machine, and the names in it. Nothing of it is
// unpacked: a symlink in it is a word.
type Files struct {
	file  *os.File
	size  int64
	names map[string]entry
}

type entry struct {
	kind byte   // of archive/tar
	link string // where a symlink leads to
}

// ReadFiles reads a tar of at most limit bytes, and keeps it below dir until Close.
func ReadFiles(dir string, from io.Reader, limit int64) (_ *Files, err error) {
	file, err := os.CreateTemp(dir, "files-*")
	if err != nil {
		return nil, err
	}
	f := &Files{file: file, names: map[string]entry{"": {kind: tar.TypeDir}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if err := os.Remove(file.Name()); err != nil { // it goes with its last user
		return nil, err
	}
	if f.size, err = io.Copy(file, io.LimitReader(from, limit+1)); err != nil {
		return nil, fmt.Errorf("reading the files of the build: %w", err)
	}
	if f.size > limit {
		return nil, fmt.Errorf("the files of the build have more than %d MiB", limit>>20)
	}
	return f, f.each(func(name string, h *tar.Header, _ io.Reader) error {
		if len(f.names) >= maxFiles || len(name) > maxName {
			return fmt.Errorf("the build has more than %d files, or a name of more than %d bytes", maxFiles, maxName)
		}
		f.names[name] = entry{h.Typeflag, h.Linkname}
		for dir := path.Dir(name); dir != "." && f.names[dir].kind == 0; dir = path.Dir(dir) {
			f.names[dir] = entry{kind: tar.TypeDir}
		}
		return nil
	})
}

// Close forgets the files.
func (f *Files) Close() error { return f.file.Close() }

// each calls do with all that the tar holds, by names without a slash at their ends.
func (f *Files) each(do func(name string, h *tar.Header, content io.Reader) error) error {
	t := tar.NewReader(io.NewSectionReader(f.file, 0, f.size))
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the files of the build: %w", err)
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
		default: // devices, pipes, and words about the tar
			continue
		}
		if name := clean(h.Name); name != "" {
			if err := do(name, h, t); err != nil {
				return err
			}
		}
	}
}

func clean(name string) string { return path.Clean("/" + name)[1:] }

// text is the content of a file, of at most limit bytes.
func (f *Files) text(name string, limit int64) (text []byte, err error) {
	at, err := f.resolve(name)
	if err != nil {
		return nil, err
	}
	if f.names[at].kind != tar.TypeReg {
		return nil, fmt.Errorf("%s is no file", name)
	}
	err = f.each(func(name string, h *tar.Header, content io.Reader) error {
		if name != at || h.Typeflag != tar.TypeReg {
			return nil
		}
		if h.Size > limit {
			return fmt.Errorf("%s has more than %d bytes", name, limit)
		}
		text, err = io.ReadAll(content)
		return err
	})
	return text, err
}

// resolve follows the symlinks on the way to a name, within the files.
func (f *Files) resolve(name string) (string, error) {
	done, rest := "", strings.Split(clean(name), "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		e, ok := f.names[next]
		if next == "" || next == "." {
			done = ""
			continue
		}
		if !ok {
			return "", fmt.Errorf("%s is not among the files of the build", short(name))
		}
		if e.kind != tar.TypeSymlink {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many symbolic links", short(name))
		}
		to := path.Join("/", done, e.link)
		if path.IsAbs(e.link) {
			to = path.Clean(e.link)
		}
		rest = append(strings.Split(strings.TrimPrefix(to, "/"), "/"), rest...)
		done = ""
	}
	return done, nil
}

// find is what a source of a COPY names.
func (f *Files) find(ctx context.Context, source string) ([]string, error) {
	if !strings.ContainsAny(source, "*?[") {
		name, err := f.resolve(source)
		return []string{name}, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var found []string
	pattern := clean(source)
	for _, name := range slices.Sorted(maps.Keys(f.names)) {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", short(source), err)
		}
		if ok && name != "" {
			at, err := f.resolve(name)
			if err != nil {
				return nil, err
			}
			found = append(found, at)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s matches none of the files of the build", short(source))
	}
	return found, nil
}

// ignore forgets what a .dockerignore says.
func (f *Files) ignore(ctx context.Context) error {
	if f.names[".dockerignore"].kind == 0 {
		return nil
	}
	text, err := f.text(".dockerignore", maxText)
	if err != nil {
		return err
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf(".dockerignore: %w", err)
	}
	if len(patterns) > maxIgnore {
		return fmt.Errorf(".dockerignore has more than %d lines", maxIgnore)
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return fmt.Errorf(".dockerignore: %w", err)
	}
	for name := range f.names {
		if err := ctx.Err(); err != nil {
			return err
		}
		out, err := m.MatchesOrParentMatches(name)
		if err != nil {
			return fmt.Errorf(".dockerignore: %w", err)
		}
		if out && name != "" && f.names[name].kind != tar.TypeDir {
			delete(f.names, name)
		}
	}
	return nil
}

// An owner is who files are given to, and their mode, -1 for that which they have.
type owner struct {
	uid, gid int
	mode     int64
}

// write writes a tar of what is at or below the sources, as the paths in a container that
// each is to become. A folder that is there already stays as it is.
func (f *Files) write(out io.Writer, to map[string]string, there bool, o owner) error {
	w := tar.NewWriter(out)
	err := f.each(func(name string, h *tar.Header, content io.Reader) error {
		at, ok := target(to, name)
		_, kept := f.names[name]
		if _, source := to[name]; !ok || !kept || at == "" || source && there && h.Typeflag == tar.TypeDir {
			return nil
		}
		n := tar.Header{
			Typeflag: h.Typeflag, Name: at, Size: h.Size, Mode: h.Mode & 0o7777, Linkname: h.Linkname, ModTime: h.ModTime, Uid: o.uid, Gid: o.gid,
		}
		if o.mode >= 0 {
			n.Mode = o.mode
		}
		if h.Typeflag == tar.TypeLink {
			if n.Linkname, ok = target(to, clean(h.Linkname)); !ok {
				return fmt.Errorf("%s is a hard link to %s, which is not copied with it", short(name), short(h.Linkname))
			}
		}
		if err := w.WriteHeader(&n); err != nil {
			return err
		}
		_, err := io.Copy(w, content)
		return err
	})
	if err != nil {
		return err // without the end of a tar, or it would be taken for whole
	}
	return w.Close()
}

// target is the path that a name becomes, without the slash that it begins with.
func target(to map[string]string, name string) (string, bool) {
	for at := name; ; at = path.Dir(at) {
		if at == "." {
			at = ""
		}
		if into, ok := to[at]; ok {
			return strings.TrimPrefix(path.Join("/", into, strings.TrimPrefix(name, at)), "/"), true
		}
		if at == "" {
			return "", false
		}
	}
}
