package dockerfile

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// copying is a COPY, or an ADD that is none else.
type copying struct {
	from, chown, chmod string
	instructions.SourcesAndDest
}

var numbers = regexp.MustCompile(`^([0-9]{1,9}|root)(?::([0-9]{1,9}|root))?$`)

// owner is who the files are given to.
func (c *copying) owner() (o owner, err error) {
	o.mode = -1
	if c.chown != "" {
		m := numbers.FindStringSubmatch(c.chown)
		if m == nil {
			return o, fmt.Errorf("--chown=%s: want numbers, as names are the image's", short(c.chown))
		}
		o.uid, _ = strconv.Atoi(m[1]) // root is 0
		o.gid = o.uid
		if m[2] != "" {
			o.gid, _ = strconv.Atoi(m[2])
		}
	}
	if c.chmod != "" {
		if o.mode, err = strconv.ParseInt(c.chmod, 8, 64); err != nil || o.mode < 0 || o.mode > 0o7777 {
			return o, fmt.Errorf("--chmod=%s: want an octal number", short(c.chmod))
		}
	}
	return o, nil
}

// maxSources is how many sources a COPY may name.
const maxSources = 256

func (s *stage) copy(ctx context.Context, c copying) error {
	if n := len(c.SourcePaths) + len(c.SourceContents); n > maxSources {
		return fmt.Errorf("it names %d sources; at most %d are copied", n, maxSources)
	}
	if err := c.ExpandRaw(s.raw(s.Env, s.args)); err != nil {
		return err
	}
	o, err := c.owner()
	if err != nil {
		return err
	}
	dest := s.within(c.DestPath)
	folder := strings.HasSuffix(c.DestPath, "/") || path.Base(c.DestPath) == "." || len(c.SourcePaths)+len(c.SourceContents) > 1
	if len(c.SourceContents) > 0 {
		if err := s.inline(ctx, c, dest, folder, o); err != nil {
			return err
		}
	}
	if c.from != "" {
		for _, source := range c.SourcePaths {
			if err := s.across(ctx, c.from, source, dest, folder, o); err != nil {
				return err
			}
		}
		return nil
	}
	if len(c.SourcePaths) == 0 {
		return nil
	}
	var found []string
	for _, source := range c.SourcePaths {
		names, err := s.files.find(ctx, source)
		if err != nil {
			return err
		}
		found = append(found, names...)
	}
	return s.write(ctx, func(ctx context.Context, box string) error { return s.put(ctx, box, s.files, found, dest, folder, o) })
}

// put writes files, by their names, to dest in a container; folder tells that dest is
// one, whatever is there.
func (s *stage) put(ctx context.Context, box string, files *Files, names []string, dest string, folder bool, o owner) (err error) {
	there, err := s.IsDir(ctx, box, dest)
	if err != nil {
		return err
	}
	folder = folder || there || len(names) > 1
	to := map[string]string{}
	for _, name := range names {
		switch {
		case files.names[name].kind == tar.TypeDir, !folder: // of a folder it is what is in it
			to[name] = dest
		default:
			to[name] = path.Join(dest, path.Base(name))
		}
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(files.write(w, to, there, o)) }()
	return errors.Join(s.Write(ctx, box, r), r.Close())
}

// inline writes the texts that follow a COPY.
func (s *stage) inline(ctx context.Context, c copying, dest string, folder bool, o owner) error {
	if o.mode < 0 {
		o.mode = 0o644
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, text := range c.SourceContents {
		at := dest
		if folder {
			at = path.Join(dest, path.Base(text.Path))
		}
		if err := w.WriteHeader(&tar.Header{Name: at[1:], Mode: o.mode, Uid: o.uid, Gid: o.gid, Size: int64(len(text.Data))}); err != nil {
			return err
		}
		if _, err := io.WriteString(w, text.Data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return s.write(ctx, func(ctx context.Context, box string) error { return s.Write(ctx, box, &buf) })
}

// across copies from an earlier stage, or another image.
func (s *stage) across(ctx context.Context, from, source, dest string, folder bool, o owner) error {
	if strings.ContainsAny(source, "*?[") {
		return fmt.Errorf("%s: with --from, no * ? and [ are possible here", short(source))
	}
	image := s.made[strings.ToLower(from)]
	if image == nil {
		base, err := s.Base(ctx, from)
		if err != nil {
			return fmt.Errorf("--from=%s: %w", short(from), err)
		}
		image = &base
	}
	source = path.Clean("/" + source)
	return s.write(ctx, func(ctx context.Context, box string) error {
		files, err := s.readOut(ctx, image, source)
		if err != nil {
			return fmt.Errorf("%s of %s: %w", short(source), short(from), err)
		}
		return errors.Join(s.put(ctx, box, files, []string{clean(path.Base(source))}, dest, folder, o), files.Close())
	})
}

// readOut reads what is at a path of an image.
func (s *stage) readOut(ctx context.Context, image *Image, source string) (files *Files, err error) {
	box, err := s.Create(ctx, image.ID, Process{Argv: []string{"/bin/sh"}, Env: image.Env})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Remove(ctx, box)) }()
	out, err := s.Read(ctx, box, source)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if files, err = ReadFiles(s.Options.Dir, out, s.Max); err != nil {
		return nil, err
	}
	if base := clean(path.Base(source)); files.names[base].kind == 0 {
		return nil, errors.Join(errors.New("it holds no file or folder of that name"), files.Close())
	}
	return files, nil
}
