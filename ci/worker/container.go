package worker

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/nektos/act/pkg/common"
	"github.com/nektos/act/pkg/container"
	"github.com/nektos/act/pkg/model"

	"codeberg.org/devaipod/devaipod/ci/job"
)

type stepResults = map[string]*model.StepResult

// Bounds on what is read out of a container at once, bytes.
const (
	maxRaw    = 1 << 20 // of a line, before secrets are taken out and it is cut
	maxAction = 1 << 20 // of an action.yml
)

// bounded is the job's container as act sees it, with bounds on what it answers.
type bounded struct {
	container.ExecutionsEnvironment
	dir      string // whose files a checkout brings, where it is set
	workdir  string // the workspace, as act calls it
	out, err *lines
	left     map[string][]byte // by the last step, for the runner; nil: to be read
}

// ReplaceLogWriter has what steps print go to o and e, by whole lines.
func (b *bounded) ReplaceLogWriter(o, e io.Writer) (io.Writer, io.Writer) {
	b.out = byLine(o)
	b.err = b.out // most often the same: one line then is of one of them
	if e != o {
		b.err = byLine(e)
	}
	return b.ExecutionsEnvironment.ReplaceLogWriter(b.out, b.err)
}

// Exec is a command in the container. What it prints after its last newline is a line
// too, which act forgets.
func (b *bounded) Exec(cmd []string, env map[string]string, user, dir string) common.Executor {
	run := b.ExecutionsEnvironment.Exec(cmd, env, user, dir)
	return func(ctx context.Context) error {
		b.forget()
		err := run(ctx)
		return errors.Join(err, b.out.flush(), b.err.flush())
	}
}

// UpdateFromEnv reads a file of lines NAME=VALUE, or NAME<<END and lines up to END,
// which act would read whatever its size.
func (b *bounded) UpdateFromEnv(name string, env *map[string]string) common.Executor {
	return func(ctx context.Context) error {
		text, err := b.file(ctx, name)
		if err != nil {
			return err
		}
		return parseEnv(path.Base(name), text, *env)
	}
}

// GetContainerArchive is a tar of what is at name, cut where act would take it into
// memory whole.
func (b *bounded) GetContainerArchive(ctx context.Context, name string) (io.ReadCloser, error) {
	switch base := path.Base(name); {
	case path.Dir(name) == path.Join(b.GetActPath(), "workflow"):
		text, err := b.file(ctx, name)
		if err != nil {
			return nil, err
		}
		return tarOf(tar.Header{Name: base, Mode: 0o644}, text)
	case base == "action.yml" || base == "action.yaml":
		from, err := b.ExecutionsEnvironment.GetContainerArchive(ctx, name)
		if err != nil {
			return nil, err
		}
		return limited{io.LimitReader(from, maxAction), from}, nil
	}
	return b.ExecutionsEnvironment.GetContainerArchive(ctx, name)
}

type limited struct {
	io.Reader
	io.Closer
}

// Copy puts files into the container; act does so before each step.
func (b *bounded) Copy(dir string, files ...*container.FileEntry) common.Executor {
	b.forget()
	return b.ExecutionsEnvironment.Copy(dir, files...)
}

// CopyDir copies a directory of this machine into the container. The only one that act
// has for it, beside those of actions, is what actions/checkout brings in a local run.
func (b *bounded) CopyDir(to, from string, ignore bool) common.Executor {
	if b.dir != "" && from == b.workdir+"/." {
		from = b.dir + "/."
	}
	return b.ExecutionsEnvironment.CopyDir(to, from, ignore)
}

func (b *bounded) forget() { b.left = nil }

// file is the text of one of the files that steps write for the runner; a summary is
// cut, where it is too large, others are refused.
func (b *bounded) file(ctx context.Context, name string) ([]byte, error) {
	if b.left == nil {
		left, err := b.read(ctx, path.Dir(name))
		if err != nil {
			return nil, fmt.Errorf("reading what the step left in %s: %w", path.Dir(name), err)
		}
		b.left = left
	}
	base := path.Base(name)
	text := b.left[base]
	switch {
	case len(text) <= maxFile:
		return text, nil
	case base == "SUMMARY.md":
		return text[:maxFile], nil
	}
	return nil, fmt.Errorf("%s has more than %d bytes", base, maxFile)
}

// read reads all of a step's files in one go, where act asks for each: on podman that
// is most of what a short step takes.
func (b *bounded) read(ctx context.Context, dir string) (left map[string][]byte, err error) {
	from, err := b.ExecutionsEnvironment.GetContainerArchive(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	left = map[string][]byte{}
	t := tar.NewReader(io.LimitReader(from, maxLeft))
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return left, nil
		} else if err != nil {
			return nil, err
		}
		if base := path.Base(h.Name); slices.Contains(stepFiles, base) && path.Base(path.Dir(h.Name)) == path.Base(dir) {
			if left[base], err = io.ReadAll(io.LimitReader(t, maxFile+1)); err != nil {
				return nil, err
			}
		}
	}
}

var stepFiles = []string{"envs.txt", "statecmd.txt", "outputcmd.txt", "pathcmd.txt", "SUMMARY.md"}

const maxLeft = 256 << 20 // bytes of all that is beside them

const maxFile = min(job.MaxSummary, job.MaxOutputs)

// tarOf is a tar of one file.
func tarOf(h tar.Header, text []byte) (io.ReadCloser, error) {
	var buf bytes.Buffer
	h.Size = int64(len(text))
	w := tar.NewWriter(&buf)
	err := w.WriteHeader(&h)
	if err == nil {
		_, err = w.Write(text)
	}
	return io.NopCloser(&buf), errors.Join(err, w.Close())
}

func parseEnv(file string, text []byte, env map[string]string) error {
	rest := strings.TrimPrefix(string(text), "\ufeff")
	for rest != "" {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		line = strings.TrimSuffix(line, "\r")
		equals, heredoc := strings.Index(line, "="), strings.Index(line, "<<")
		switch {
		case equals > 0 && (heredoc < 0 || equals < heredoc):
			env[line[:equals]] = line[equals+1:]
		case heredoc > 0:
			value, after, ok := until(rest, line[heredoc+2:])
			if !ok {
				return fmt.Errorf("%s: %s is not ended by a line %q", file, line[:heredoc], line[heredoc+2:])
			}
			env[line[:heredoc]], rest = value, after
		case line != "":
			return fmt.Errorf("%s: %.100q is neither NAME=VALUE nor NAME<<END", file, line)
		}
	}
	return nil
}

// until is text up to the line end, and after it.
func until(text, end string) (before, after string, ok bool) {
	var lines []string
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		line = strings.TrimSuffix(line, "\r")
		if line == end {
			return strings.Join(lines, "\n"), text, true
		}
		lines = append(lines, line)
	}
	return "", "", false
}

// lines passes whole lines on, of which it keeps no more than maxRaw. It is safe for
// concurrent use: what a step that ran out of time still prints comes in beside what
// the next one does.
type lines struct {
	mu  sync.Mutex
	to  io.Writer
	buf []byte
}

func byLine(w io.Writer) *lines {
	if l, ok := w.(*lines); ok {
		return l
	}
	return &lines{to: w}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		l.buf = append(l.buf, line[:min(len(line), maxRaw-len(l.buf))]...)
		if p = rest; whole {
			if err := l.pass(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// unsafe are commands by which a program's mere output would change what later steps
// run; GitHub's runner refuses them as well.
var unsafe = regexp.MustCompile(`^(?:::|##\[)(set-env|add-path)[ :\]]`)

func (l *lines) pass() error {
	line := l.buf
	if m := unsafe.FindSubmatch(line); m != nil {
		line = fmt.Appendf(nil, "::error::The output ::%s:: is not obeyed: write to the file that $GITHUB_ENV or $GITHUB_PATH names instead", m[1])
	}
	_, err := l.to.Write(append(line, '\n'))
	l.buf = l.buf[:0]
	return err
}

func (l *lines) flush() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf) == 0 {
		return nil
	}
	return l.pass()
}
