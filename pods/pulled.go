package pods

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// A pulled is what is kept of an image that this instance fetches, in a file of its
// own. That is written before the fetching, when the image is not here: whatever ends
// it, the image will be known for the instance's. When a pod asked for it last is the
// file's time.
type pulled struct {
	Ref string `json:"ref"`
	// ID and Names are as it was found here; "" while nobody has looked.
	ID    string   `json:"id,omitempty"`
	Names []string `json:"names,omitempty"`

	used time.Time
}

func (m *Manager) pulledFile(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return filepath.Join(m.cfg.StateDir, "pulled", hex.EncodeToString(sum[:8])+".json")
}

func (m *Manager) keepPulled(p pulled) error {
	m.change("note a fetched image", Key{})
	file := m.pulledFile(p.Ref)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return writeJSON(file, p)
}

func (m *Manager) forgetPulled(ref string) error {
	err := os.Remove(m.pulledFile(ref))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// usePulled notes that a pod asks for an image that is here, if the instance fetched it.
func (m *Manager) usePulled(ref string) error {
	now := time.Now()
	err := os.Chtimes(m.pulledFile(ref), now, now)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// pull fetches an image that is not here.
func (m *Manager) pull(ctx context.Context, ref string, say io.Writer) error {
	if err := m.keepPulled(pulled{Ref: ref}); err != nil {
		return fmt.Errorf("noting that %s is fetched: %w", ref, err)
	}
	if err := m.images.ImagePull(ctx, ref, say); err != nil {
		if ctx.Err() != nil { // podman may still have it
			return err
		}
		return errors.Join(err, m.forgetPulled(ref))
	}
	info, ok, err := m.images.ImageInfo(ctx, ref)
	if err != nil || !ok {
		return err
	}
	if size := m.cfg.ImageRules.Size; size > 0 && info.Size > size {
		large := &largeError{info.Size, size}
		m.large.Store(ref, refusal{large, time.Now()})
		if err := errors.Join(m.images.ImageRemove(ctx, ref), m.forgetPulled(ref)); err != nil {
			return fmt.Errorf("%w; removing it: %w", large, err)
		}
		return large
	}
	return m.keepPulled(pulled{Ref: ref, ID: info.ID, Names: info.Names})
}

// A largeError is about an image that was fetched.
type largeError struct{ has, may int64 }

func (e *largeError) Error() string {
	return fmt.Sprintf("it has %d bytes and may have %d (image.size)", e.has, e.may)
}

// A refusal says why an image is not fetched again for a while.
type refusal struct {
	*largeError
	at time.Time
}

// refusedFor is how long an image that was too large is not fetched again.
const refusedFor = time.Hour

// tooLarge is why an image was refused lately, nil if it was not.
func (m *Manager) tooLarge(ref string) error {
	if found, ok := m.large.Load(ref); ok {
		if r := found.(refusal); time.Since(r.at) < refusedFor { //nolint:forcetypeassert // nothing else is stored
			return r.largeError
		}
	}
	return nil
}

// FetchError is about an image that could not be fetched, and says what to do.
func FetchError(ref string, err error) error {
	return &ImageError{ref, fmt.Errorf("%w; %s", err, advice(err))}
}

// advice is what to do about an image that can't be fetched, by what podman says of it.
func advice(err error) string {
	var large *largeError
	if errors.As(err, &large) {
		return "use a smaller one, or let images be larger"
	}
	says := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(err.Error(), p) })
	}
	switch {
	case says("manifest unknown", "name unknown", "NAME_UNKNOWN"):
		return "there is none so called: look at its name and tag, and whether its registry wants to know who asks (podman login)"
	case says("unauthorized", "authentication required", "denied"):
		return "its registry does not let podman read it: podman login, as the user whose podman it is"
	case says("no image found in"):
		return "it is not made for this kind of machine: use one that is"
	case says("digest", "Digest"):
		return "what came is not what its registry tells of it: it is tried again, but the registry or a proxy on the way may be at fault"
	}
	return "is its registry reachable from this machine, and does it let you read the image (podman login)? It is tried again; podman pull shows more"
}

// allPulled is what is kept of all that the instance fetched.
func (m *Manager) allPulled() ([]pulled, error) {
	files, err := filepath.Glob(filepath.Join(m.cfg.StateDir, "pulled", "*.json"))
	if err != nil {
		return nil, err
	}
	var all []pulled
	for _, file := range files {
		var p pulled
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, &p)
		}
		info, e := os.Stat(file)
		if err = errors.Join(err, e); errors.Is(err, fs.ErrNotExist) {
			continue // forgotten meanwhile
		}
		if err == nil && m.pulledFile(p.Ref) != file {
			err = fmt.Errorf("it is about %.100q, which is elsewhere", p.Ref)
		}
		if err != nil {
			return nil, fmt.Errorf("reading what was fetched, in %s (remove the file, and podman's image where it is of no use): %w", file, err)
		}
		p.used = info.ModTime()
		all = append(all, p)
	}
	return all, nil
}

// An idle image is one of the instance's that nothing uses, since when.
type idle struct {
	backend.ImageThing
	since time.Time
	refs  []string // under which it was fetched
}

// idlePulled are the images that the instance fetched and nothing uses. One that has
// got another name since, or is another image now, is somebody's.
func (c *collection) idlePulled(ctx context.Context, used, inUse map[string]bool) ([]idle, error) {
	all, err := c.allPulled()
	if err != nil {
		return nil, err
	}
	type known struct {
		idle
		own []string // names that it had when it was fetched
	}
	byID := map[string]*known{}
	var errs []error
	for _, p := range all {
		info, ours, err := c.stillPulled(ctx, &p)
		if errs = append(errs, err); !ours {
			continue
		}
		k := byID[p.ID]
		if k == nil {
			k = &known{idle: idle{ImageThing: backend.ImageThing{ID: p.ID, Names: info.Names}}}
			byID[p.ID] = k
		}
		k.own, k.refs = append(k.own, p.Names...), append(k.refs, p.Ref)
		if p.used.After(k.since) {
			k.since = p.used
		}
	}
	var out []idle
	for id, k := range byID {
		others := slices.ContainsFunc(k.Names, func(n string) bool { return !slices.Contains(k.own, n) })
		wanted := slices.ContainsFunc(append(k.refs, k.Names...), func(n string) bool { return used[n] })
		if !others && !wanted && !inUse[id] {
			out = append(out, k.idle)
		}
	}
	return out, errors.Join(errs...)
}

// stillPulled tells whether what is kept of an image holds, and completes it where a
// kill left nothing but the name.
func (c *collection) stillPulled(ctx context.Context, p *pulled) (info backend.ImageInfo, ours bool, err error) {
	if c.working("fetching", p.Ref) {
		return info, false, nil
	}
	info, here, err := c.images.ImageInfo(ctx, p.Ref)
	switch {
	case err != nil:
		return info, false, err
	case !here && p.ID == "" && time.Since(p.used) < strayAge:
		return info, false, nil // podman may be fetching it still
	case here && p.ID == "" && len(info.Names) <= 1:
		p.ID, p.Names, p.used = info.ID, info.Names, time.Now()
		if !c.lim.Dry {
			err = c.keepPulled(*p)
		}
		return info, err == nil, err
	case !here || p.ID != info.ID:
		if !c.lim.Dry {
			err = c.forgetPulled(p.Ref)
		}
		return info, false, err
	}
	return info, true, nil
}

// removeIdle removes one, and what is kept of it once it is gone.
func (c *collection) removeIdle(ctx context.Context, i idle) error {
	if err := c.images.ImageRemoveAll(ctx, i.ImageThing); err != nil {
		return err
	}
	if here, err := c.images.ImageExists(ctx, i.ID); err != nil || here {
		return err
	}
	for _, ref := range i.refs {
		if err := c.forgetPulled(ref); err != nil {
			return err
		}
	}
	return nil
}

// RemovePulled removes all images that the instance has fetched and nothing uses.
func (m *Manager) RemovePulled(ctx context.Context) error {
	inUse, err := m.images.ImagesInUse(ctx)
	if err != nil {
		return err
	}
	c := &collection{Manager: m}
	all, err := c.idlePulled(ctx, nil, inUse)
	for _, i := range all {
		err = errors.Join(err, c.removeIdle(ctx, i))
	}
	return err
}
