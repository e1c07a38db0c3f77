package saver

import (
	"errors"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// errChanged is a file that got shorter while it was read.
var errChanged = errors.New("it changed while it was read")

// file saves a regular file, unless it is as it was.
func (t *tree) file(d *dir, fd int, name string, st *unix.Stat_t, force bool) {
	mode := "100644"
	if st.Mode&0o100 != 0 {
		mode = "100755"
	}
	if st.Size > t.maxFile {
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyLarge, Size: st.Size})
		return
	}
	if had := t.had(d, name); had.sameAs(st, mode) && !force {
		t.put(d, name, had)
		return
	}
	f, now, err := openRegular(fd, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		t.gone(d, name)
		return
	case errors.Is(err, errOdd) || errors.Is(err, unix.ELOOP):
		note(t.again, d, name)
		return
	case err != nil:
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyUnread, Size: st.Size, Detail: reason(err)})
		return
	}
	defer f.Close()
	if now.Size > t.maxFile {
		note(t.again, d, name)
		return
	}
	t.save(d, name, mode, &now, f)
	// Written to while we read: it is saved as we saw it, and read again.
	if after := (unix.Stat_t{}); unix.Fstat(int(f.Fd()), &after) == nil && (after.Size != now.Size || after.Mtim != now.Mtim) {
		note(t.again, d, name)
	}
}

// link saves where a symbolic link points.
func (t *tree) link(d *dir, fd int, name string, st *unix.Stat_t) {
	const mode = "120000"
	if had := t.had(d, name); had.sameAs(st, mode) {
		t.put(d, name, had)
		return
	}
	target, err := readLink(fd, name)
	if err != nil {
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyUnread, Detail: reason(err)})
		return
	}
	now := *st
	now.Size = int64(len(target))
	t.save(d, name, mode, &now, strings.NewReader(target))
}

// save writes the content and notes what it was.
func (t *tree) save(d *dir, name, mode string, st *unix.Stat_t, from io.Reader) {
	if st.Size > t.room() {
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyQuota, Size: st.Size})
		return
	}
	now := time.Now()
	id, err := t.write(st.Size, from)
	switch {
	case errors.Is(err, errChanged):
		note(t.again, d, name)
		return
	case errors.As(err, new(unix.Errno)) && !errors.Is(err, unix.EPIPE):
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyUnread, Size: st.Size, Detail: reason(err)})
		return
	case err != nil:
		t.fail = err
		return
	}
	t.put(d, name, record{
		Mode: mode, Size: st.Size, MTime: st.Mtim.Nano(), CTime: st.Ctim.Nano(), Ino: st.Ino, ID: id,
		Young: st.Ctim.Nano() > now.Add(-racy).UnixNano(),
	})
}

// had is what is known of an entry.
func (t *tree) had(d *dir, name string) record {
	if r, ok := d.files[name]; ok {
		return r
	}
	return t.known[d.path(name)]
}

func (t *tree) put(d *dir, name string, r record) {
	delete(d.left, name)
	t.goneDir(d, name)
	if old, ok := d.files[name]; !ok || old.ID != r.ID || old.Mode != r.Mode {
		t.changed[d.path(name)] = r
	}
	d.files[name] = r
}

// named gives an entry of the list its path.
func named(n podfile.NotSaved, path string) podfile.NotSaved {
	n.Path = path
	if !utf8.ValidString(path) {
		n.Path, n.Raw = strings.ToValidUTF8(path, "\ufffd"), []byte(path)
	}
	return n
}
