package saver

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The agent's tree is read by names that are one step long, from an open
// directory, and no symbolic link is followed: what is swapped meanwhile can
// only make an error. O_NONBLOCK lets a fifo not hold us.

const (
	maxName = 255
	openDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	openAny = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
)

// errOdd is returned for what is something else than it should be.
var errOdd = errors.New("it is not what it should be")

// openPath opens a directory, one step after the other.
func openPath(root string, steps ...string) (int, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for _, step := range steps {
		if err != nil {
			return -1, err
		}
		fd, err = stepInto(fd, step)
	}
	return fd, err
}

// stepInto closes fd and opens what is below it.
func stepInto(fd int, name string) (int, error) {
	defer closeFD(fd)
	return unix.Openat(fd, name, openDir, 0)
}

// closeFD closes what was only read.
func closeFD(fd int) { _ = unix.Close(fd) }

// stat tells about an entry itself, not what it points to.
func stat(fd int, name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// names lists a directory. It reads fd to its end.
func names(fd int) ([]string, error) {
	again, err := unix.Openat(fd, ".", openDir, 0) // a position of its own
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(again), ".")
	defer f.Close()
	return f.Readdirnames(-1)
}

// openRegular opens a regular file.
func openRegular(fd int, name string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	file, err := unix.Openat(fd, name, openAny, 0)
	if err != nil {
		return nil, st, err
	}
	if err := unix.Fstat(file, &st); err != nil {
		closeFD(file)
		return nil, st, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		closeFD(file)
		return nil, st, fmt.Errorf("%s: %w", name, errOdd)
	}
	return os.NewFile(uintptr(file), name), st, nil
}

// readSmall reads a regular file of at most limit bytes.
func readSmall(fd int, name string, limit int64) ([]byte, error) {
	f, _, err := openRegular(fd, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return b, err
}

// readLink is where a link points.
func readLink(fd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// weigh sums the sizes below a directory, of at most `most` entries; more tells
// that there are others.
func weigh(fd int, most int) (size int64, more bool) {
	left := most
	var walk func(fd, depth int)
	walk = func(fd, depth int) {
		all, err := names(fd)
		if err != nil || depth > maxDepth {
			more = true
			return
		}
		for _, name := range all {
			if left--; left < 0 {
				more = true
				return
			}
			st, err := stat(fd, name)
			if err != nil {
				continue // gone
			}
			size += st.Size
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			if below, err := unix.Openat(fd, name, openDir, 0); err == nil {
				walk(below, depth+1)
				closeFD(below)
			}
		}
	}
	walk(fd, 0)
	return size, more
}

// reason is an error in few words, without our own paths.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
