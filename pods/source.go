package pods

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// A Source says where the image of a pod's workspace comes from: the name of one, or
// how it is built; neither for the agent's own.
type Source struct {
	Image string
	Build *Build
	// Agent says that the agent works in it too.
	Agent bool
}

// A Build makes an image of a repository's files.
type Build struct {
	RepoID     int64
	Content    string // names the files for good, such as a tree of git's
	Dockerfile string // among them
	Target     string
	Args       map[string]string
	// Files writes them, as a tar archive.
	Files func(ctx context.Context, w io.Writer) error
}

// ImageRules bound what is fetched and built.
type ImageRules struct {
	NoPull bool          // images that are not here are not fetched
	Within time.Duration // for a fetch or a build
	Size   int64         // bytes of an image that was fetched or built, and of what it is built from
	Memory int64         // bytes for a step of a build; 0 where there are no limits
}

// ErrPreparing is in the error of a pod whose image is being fetched, built or looked at. That
// goes on; the pod is to be asked for again.
var ErrPreparing = errors.New("its image is not ready yet")

// prepareWithin is how long a pod waits for its image before others have their turn.
const prepareWithin = 5 * time.Second

// A job fetches, builds or looks at an image.
type job struct {
	done chan struct{}
	err  error // once done

	mu   sync.Mutex
	last string // that it said
}

// Write takes what the job says; the last whole line is kept.
func (j *job) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range bytes.SplitSeq(b, []byte("\n")) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			j.last = string(line[:min(len(line), 200)])
		}
	}
	return len(b), nil
}

func (j *job) said() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// prepare does something about an image, once however many wait for it, and longer
// than its caller waits.
func (m *Manager) prepare(ctx context.Context, ref, what string, do func(ctx context.Context, say io.Writer) error) error {
	key := what + " " + ref
	m.jobsMu.Lock()
	j := m.jobs[key]
	if j == nil {
		if m.jobs == nil {
			m.jobs = map[string]*job{}
		}
		j = &job{done: make(chan struct{})}
		m.jobs[key] = j
		go func() {
			// It ends with the process, or when its time is over.
			within, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), m.cfg.ImageRules.within(), fmt.Errorf("it took longer than %s (image.within)", m.cfg.ImageRules.within()))
			defer cancel()
			m.log.Debug(what+" an image", "image", ref)
			if j.err = do(within, j); j.err != nil && within.Err() != nil {
				j.err = context.Cause(within)
			}
			m.log.Debug(what+" an image: ended", "image", ref, "err", j.err)
			close(j.done)
		}()
	}
	m.jobsMu.Unlock()
	wait := time.NewTimer(prepareWithin)
	defer wait.Stop()
	select {
	case <-j.done:
		m.jobsMu.Lock()
		defer m.jobsMu.Unlock()
		if m.jobs[key] == j {
			delete(m.jobs, key) // the next one tries again
		}
		return j.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-wait.C:
		return fmt.Errorf("%w: %s it (%s; %.100q)", ErrPreparing, what, ref, j.said())
	}
}

// working tells whether something is being done about an image.
func (m *Manager) working(what, ref string) bool {
	m.jobsMu.Lock()
	defer m.jobsMu.Unlock()
	j := m.jobs[what+" "+ref]
	if j == nil {
		return false
	}
	select {
	case <-j.done:
		return false
	default:
		return true
	}
}

func (r ImageRules) within() time.Duration {
	if r.Within == 0 {
		return 30 * time.Minute
	}
	return r.Within
}

// source has the image of a pod's workspace here, and notes its name.
func (m *Manager) source(ctx context.Context, s *Spec) error {
	if m.cfg.Source == nil {
		return nil
	}
	from, err := m.cfg.Source(ctx, *s)
	if err != nil {
		return err
	}
	s.Image, s.AgentInImage = from.Image, from.Agent
	if from.Build != nil {
		s.Image = m.buildRef(*from.Build)
	}
	if s.Image == "" {
		return nil
	}
	if from.Build == nil {
		return m.Have(ctx, s.Image, nil)
	}
	return m.Have(ctx, s.Image, func(ctx context.Context, say io.Writer) error {
		if err := m.buildImage(ctx, s.Image, *from.Build, say); err != nil {
			return fmt.Errorf("%w; its output is in %s", err, m.buildLog(s.Image))
		}
		return nil
	})
}

// Have has an image here: it is built by build, or fetched, if it is not. That goes on
// after Have has returned ErrPreparing.
func (m *Manager) Have(ctx context.Context, ref string, build func(ctx context.Context, say io.Writer) error) error {
	busy := m.working("building", ref) || m.working("fetching", ref) // then it may be there, and be found too large yet
	ok, err := m.images.ImageExists(ctx, ref)
	large := m.tooLarge(ref)
	switch {
	case err != nil:
		return err
	case ok && !busy:
		return m.usePulled(ref)
	case build != nil:
		err = m.prepare(ctx, ref, "building", build)
	case m.cfg.ImageRules.NoPull || strings.HasPrefix(ref, "localhost/"):
		return &ImageError{ref, errors.New("it is not here, and is not fetched (image.pull; names that begin with localhost/ never are); build it or fetch it with podman pull")}
	case large != nil:
		return FetchError(ref, large)
	default:
		err = m.prepare(ctx, ref, "fetching", func(ctx context.Context, say io.Writer) error { return m.pull(ctx, ref, say) })
	}
	switch {
	case err == nil || errors.Is(err, ErrPreparing) || ctx.Err() != nil:
		return err
	case build == nil:
		return FetchError(ref, err)
	}
	return &ImageError{ref, err}
}

// Renew has build bring an image up to date that is here, and that others have meanwhile as it
// is. It returns as Have does.
func (m *Manager) Renew(ctx context.Context, ref string, build func(ctx context.Context, say io.Writer) error) error {
	return m.prepare(ctx, ref, "renewing", build)
}

func (m *Manager) buildPrefix(repo int64) string {
	return fmt.Sprintf("localhost/%s/build-%d:", m.cfg.Instance, repo)
}

// buildRef names an image by all that it is built from.
func (m *Manager) buildRef(b Build) string {
	text, err := json.Marshal([]any{b.Content, b.Dockerfile, b.Target, b.Args}) // maps are written with sorted keys
	if err != nil {
		panic(err) // plain data
	}
	sum := sha256.Sum256(text)
	return m.buildPrefix(b.RepoID) + hex.EncodeToString(sum[:8])
}

// buildLog is the file with the output of a build.
func (m *Manager) buildLog(ref string) string {
	return filepath.Join(m.cfg.StateDir, "builds", strings.NewReplacer("/", "-", ":", "-").Replace(strings.TrimPrefix(ref, "localhost/"))+".log")
}

// maxBuildLog is how much of a build's output is kept, in bytes.
const maxBuildLog = 4 << 20

// buildImage builds an image, and then removes the repository's older ones that
// nothing uses.
func (m *Manager) buildImage(ctx context.Context, ref string, b Build, say io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(m.buildLog(ref)), 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(m.buildLog(ref), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	archive, w := io.Pipe()
	files := make(chan error, 1)
	go func() {
		err := b.Files(ctx, &bounded{w: w, left: m.cfg.ImageRules.Size})
		files <- err
		w.CloseWithError(err)
	}()
	log := io.MultiWriter(say, &head{w: file, left: maxBuildLog})
	err = m.images.ImageBuild(ctx, backend.ImageBuild{
		Ref: ref, Labels: map[string]string{labelInstance: m.cfg.Instance, labelRepoID: fmt.Sprint(b.RepoID)},
		Context: archive, Dockerfile: b.Dockerfile, Target: b.Target, Args: b.Args, MemoryBytes: m.cfg.ImageRules.Memory,
	}, log)
	_ = archive.Close() // for Files, should it still write
	if unread := <-files; err != nil && unread != nil && !errors.Is(unread, io.ErrClosedPipe) {
		err = fmt.Errorf("reading what it is built from: %w", unread)
	}
	if err != nil {
		_, _ = fmt.Fprintln(log, err) // what is there of it already says more
		return err
	}
	info, _, err := m.images.ImageInfo(ctx, ref)
	if size := m.cfg.ImageRules.Size; err == nil && size > 0 && info.Size > size {
		err = errors.Join(fmt.Errorf("it has %d bytes and may have %d (image.size)", info.Size, size), m.images.ImageRemove(ctx, ref))
	}
	if err != nil {
		return err
	}
	return m.removeBuilds(ctx, m.buildPrefix(b.RepoID), ref)
}

// removeBuilds removes images that were built, but for keep and those in use.
func (m *Manager) removeBuilds(ctx context.Context, prefix, keep string) error {
	old, err := m.images.Images(ctx, prefix)
	if err != nil {
		return err
	}
	for _, ref := range old {
		if ref == keep {
			continue
		}
		if err := m.images.ImageRemove(ctx, ref); err != nil {
			return err
		}
		if ok, err := m.images.ImageExists(ctx, ref); err != nil || ok {
			continue
		}
		if err := os.Remove(m.buildLog(ref)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// RemoveBuilds removes all images that the instance has built and nothing uses.
func (m *Manager) RemoveBuilds(ctx context.Context) error {
	return m.removeBuilds(ctx, "localhost/"+m.cfg.Instance+"/build-", "")
}

// bounded fails when more is written than may be.
type bounded struct {
	w    io.Writer
	left int64 // 0 is no bound
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left > 0 {
		if b.left -= int64(len(p)); b.left <= 0 {
			return 0, errors.New("what it is built from is larger than image.size")
		}
	}
	return b.w.Write(p)
}

// head writes the first bytes on and drops the rest.
type head struct {
	w    io.Writer
	left int
}

func (h *head) Write(p []byte) (int, error) {
	n := min(len(p), h.left)
	h.left -= n
	if n > 0 {
		if _, err := h.w.Write(p[:n]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
