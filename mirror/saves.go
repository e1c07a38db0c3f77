package mirror

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
	"codeberg.org/devaipod/devaipod/mirror/smarthttp"
)

// What a pod's saver saves is below refs/saved/ISSUE/ in the work store (invariant
// S6). No rule looks at its content, and nobody reads it by git's protocols. It
// needs nothing but the work store and the generation of objects that the pod
// borrows from, which the work store holds on to.
const savedRefs = "refs/saved/"

// SaveRules say whose work a saver saves.
type SaveRules struct {
	RepoID int64
	Issue  int64
	// Borrow is the generation that the pod's clones borrow from, a bare
	// repository; "" for none.
	Borrow string
	// Quota bounds what is kept of this issue's agent, in bytes as it was sent.
	Quota int64
}

func (r SaveRules) prefix() string { return fmt.Sprintf("%s%d/", savedRefs, r.Issue) }

// Saves answers one pod's saver at /saved.git. It takes what is pushed below
// refs/saved/ISSUE/ and keeps what is overwritten or deleted there as
// refs/saved/ISSUE/kept/ID.
//
// The rules are asked for at each request.
func (w *Work) Saves(now func() (SaveRules, error)) http.Handler {
	with := func(h func(http.ResponseWriter, *http.Request, SaveRules)) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			rules, err := now()
			if err != nil {
				w.log.Warn("a saver can't be served", "err", err)
				smarthttp.Refuse(rw, http.StatusInternalServerError, "devaipod: this pod is not known any more")
				return
			}
			h(rw, r, rules)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /saved.git/info/refs", with(func(rw http.ResponseWriter, r *http.Request, rules SaveRules) {
		if r.URL.Query().Get("service") != "git-receive-pack" {
			smarthttp.Refuse(rw, http.StatusForbidden, "devaipod: what was saved is not read from here")
			return
		}
		w.advertiseSaved(rw, r, rules)
	}))
	mux.HandleFunc("POST /saved.git/git-receive-pack", with(w.receiveSaved))
	mux.HandleFunc("/", func(rw http.ResponseWriter, _ *http.Request) {
		smarthttp.Refuse(rw, http.StatusForbidden, "devaipod: a saver pushes to /saved.git, and does nothing else")
	})
	return mux
}

// openSaves is the store with what the pod borrows from.
func (w *Work) openSaves(ctx context.Context, rules SaveRules) (*store, error) {
	format := "sha1"
	if rules.Borrow != "" {
		var err error
		if format, err = objectFormat(ctx, rules.Borrow); err != nil {
			return nil, err
		}
	}
	s, err := w.openStore(ctx, rules.RepoID, "", format)
	if err == nil {
		err = w.nameOnce(ctx, s, rules.RepoID)
	}
	if err != nil || rules.Borrow == "" {
		return s, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s, s.borrow(rules.Borrow)
}

// borrow has the store borrow from a generation for good
// (gitrepository-layout(5), objects/info/alternates).
func (s *store) borrow(generation string) error {
	have, err := s.lenders()
	if err != nil || slices.Contains(have, generation) {
		return err
	}
	return s.setLenders(append(have, generation))
}

func (s *store) alternatesFile() string {
	return filepath.Join(s.dir, "objects", "info", "alternates")
}

// lenders are the generations that the store borrows from, the newest last.
func (s *store) lenders() ([]string, error) {
	b, err := os.ReadFile(s.alternatesFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		out = append(out, filepath.Dir(strings.TrimSuffix(line, "\n")))
	}
	return out, err
}

func (s *store) setLenders(dirs []string) error {
	var text strings.Builder
	for _, dir := range dirs {
		text.WriteString(filepath.Join(dir, "objects") + "\n")
	}
	if err := os.MkdirAll(filepath.Dir(s.alternatesFile()), 0o700); err != nil {
		return err
	}
	return replaceFile(s.alternatesFile(), text.String())
}

// shed lets go of all generations but the newest where that one has all that what
// was saved needs. The caller has the lock.
func (s *store) shed(ctx context.Context) error {
	have, err := s.lenders()
	if err != nil || len(have) < 2 {
		return err
	}
	newest := have[len(have)-1]
	saved, err := refs(ctx, s.dir, savedRefs)
	if err != nil {
		return err
	}
	lent, err := refs(ctx, newest, "refs/heads/", "refs/tags/")
	if err != nil {
		return err
	}
	// Another repository, which has the same objects but for the older generations.
	alone, err := os.MkdirTemp(s.dir, "incoming-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(alone) //nolint:errcheck // the next start sweeps
	if err := os.Symlink(filepath.Join(s.dir, "objects", "pack"), filepath.Join(alone, "pack")); err != nil {
		return err
	}
	c := s.child(revisions(idsOf(saved), idsOf(lent)), io.Discard, "rev-list", "--objects", "--quiet", "--stdin")
	c.Env = []string{"GIT_OBJECT_DIRECTORY=" + alone, "GIT_ALTERNATE_OBJECT_DIRECTORIES=" + filepath.Join(newest, "objects")}
	var lacks *gitproc.Error
	if err := c.Run(ctx); errors.As(err, &lacks) {
		return nil // and so it holds on to all
	} else if err != nil {
		return err
	}
	return s.setLenders([]string{newest})
}

// replaceFile writes a file at once.
func replaceFile(path, text string) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Borrowed are the generations that what was saved needs: for each repository the
// newest, as long as that has all of it. A store that has nothing saved lets go of
// them.
func (w *Work) Borrowed(ctx context.Context) (map[string]bool, error) {
	ids, err := w.stores()
	dirs := map[string]bool{}
	for _, id := range ids {
		s := w.storeAt(id)
		if e := s.borrowed(ctx, dirs); e != nil {
			err = errors.Join(err, fmt.Errorf("work store of repository %d: %w", id, e))
		}
	}
	return dirs, err
}

func (s *store) borrowed(ctx context.Context, dirs map[string]bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.lenders()
	if err != nil || len(have) == 0 {
		return err
	}
	saved, err := refs(ctx, s.dir, savedRefs)
	if err != nil {
		return err
	}
	if len(saved) == 0 {
		return os.Remove(s.alternatesFile())
	}
	if err := s.shed(ctx); err != nil {
		return err
	}
	if have, err = s.lenders(); err != nil {
		return err
	}
	for _, dir := range have {
		dirs[dir] = true
	}
	return nil
}

// maxHaves bounds how many of a generation's branches a saver is told of.
const maxHaves = 1000

// base are the commits that the saver need not send: those of the generation, and
// what was saved before.
func (s *store) base(ctx context.Context, rules SaveRules) (saved []ref, haves []string, err error) {
	if saved, err = refs(ctx, s.dir, rules.prefix()); err != nil || rules.Borrow == "" {
		return saved, nil, err
	}
	lent, err := refs(ctx, rules.Borrow, "refs/heads/")
	for _, r := range lent {
		if haves = append(haves, r.id); len(haves) == maxHaves {
			break
		}
	}
	return saved, haves, err
}

func (w *Work) advertiseSaved(rw http.ResponseWriter, r *http.Request, rules SaveRules) {
	s, err := w.openSaves(r.Context(), rules)
	var saved []ref
	var haves []string
	if err == nil {
		saved, haves, err = s.base(r.Context(), rules)
	}
	if err != nil {
		w.log.Warn("telling a saver what was saved", "repo", rules.RepoID, "issue", rules.Issue, "err", err)
		smarthttp.Refuse(rw, http.StatusInternalServerError, "devaipod: the work store can't be read")
		return
	}
	var lines []string
	for _, r := range saved {
		lines = append(lines, r.id+" "+r.name)
	}
	for _, id := range haves {
		lines = append(lines, id+" .have")
	}
	tellRefs(rw, lines, s.format, " delete-refs atomic")
}

// receiveSaved takes what a saver pushes.
func (w *Work) receiveSaved(rw http.ResponseWriter, r *http.Request, rules SaveRules) {
	list, body, ok := readPush(rw, r)
	if !ok {
		return
	}
	reasons := map[string]string{}
	for _, c := range list.commands {
		if !strings.HasPrefix(c.ref, rules.prefix()) || !validRef(c.ref) {
			reasons[c.ref] = "a saver pushes below " + rules.prefix() + " only"
		}
	}
	if len(reasons) == 0 {
		if err := w.save(r.Context(), rules, list, body); err != nil {
			if r.Context().Err() != nil {
				return
			}
			w.log.Error("what an agent did could not be saved", "repo", rules.RepoID, "issue", rules.Issue, "err", err)
			for _, c := range list.commands {
				reasons[c.ref] = err.Error()
			}
		}
	}
	if len(reasons) > 0 {
		w.refuse(rw, list, body, reasons, nil)
		return
	}
	answer(rw, list, nil, nil)
}

// save keeps what was pushed, all or nothing.
func (w *Work) save(ctx context.Context, rules SaveRules, list *commandList, body io.Reader) error {
	s, err := w.openSaves(ctx, rules)
	if err != nil {
		return err
	}
	q, err := s.quarantine()
	if err != nil {
		return err
	}
	defer q.close() //nolint:errcheck // the next start sweeps
	s.mu.Lock()
	used, err := s.used(rules.Issue)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	room := rules.Quota - used
	size, err := w.unpackSaved(ctx, q, list, body, room)
	if size > room {
		return &QuotaError{rules.Quota}
	}
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // it is here: a saver that is gone changes nothing
	if err := q.connected(ctx, rules, list); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := q.keep(); err != nil {
		return err
	}
	changes, err := s.savedChanges(ctx, rules, list)
	if err != nil {
		return err
	}
	if used, err = s.used(rules.Issue); err != nil {
		return err
	}
	// The count first: a kill in between counts twice rather than not at all.
	if err := s.setUsed(rules.Issue, used+size); err != nil {
		return err
	}
	return s.update(ctx, changes...)
}

// A QuotaError tells that what is kept of an issue's agent is at its bound.
type QuotaError struct{ Quota int64 } // bytes

func (e *QuotaError) Error() string {
	return fmt.Sprintf("over quota: more than %s would be kept of this issue's agent (work.max_saved); raise it, or remove what was saved with devaipod rm", bytesText(e.Quota))
}

// unpackSaved reads the pack, if one comes, into the quarantine. No rule but size
// looks at it.
func (w *Work) unpackSaved(ctx context.Context, q *quarantine, list *commandList, body io.Reader, room int64) (size int64, err error) {
	if !slices.ContainsFunc(list.commands, func(c command) bool { return !c.deletes() }) {
		return 0, nil // such a push has no pack
	}
	r, pw := io.Pipe()
	var indexed error
	var wait sync.WaitGroup
	wait.Go(func() {
		indexed = q.git(ctx, r, io.Discard, "index-pack", "--stdin", "--fix-thin")
		r.CloseWithError(errors.Join(errIndexed, indexed))
	})
	limits := Limits{Push: room, Unpacked: 1 << 40, File: max(w.limits.File, 1<<30), Objects: 100_000_000}
	trailer, err := readPack(body, len(list.commands[0].new)/2, limits, func(b []byte) error {
		size += int64(len(b))
		_, err := pw.Write(b)
		return err
	})
	if err == nil {
		_, err = pw.Write(trailer)
	}
	pw.CloseWithError(err)
	wait.Wait()
	var said *gitproc.Error
	if errors.As(indexed, &said) && (err == nil || errors.Is(err, errIndexed)) {
		return size, indexed
	}
	return size, errors.Join(err, indexed)
}

// connected makes sure that all that the new refs need is here, for good.
func (q *quarantine) connected(ctx context.Context, rules SaveRules, list *commandList) error {
	saved, haves, err := q.base(ctx, rules)
	if err != nil {
		return err
	}
	var tips []string
	for _, c := range list.commands {
		if !c.deletes() {
			tips = append(tips, c.new)
		}
	}
	if len(tips) == 0 {
		return nil
	}
	return q.git(ctx, revisions(tips, append(haves, idsOf(saved)...)), io.Discard, "rev-list", "--objects", "--quiet", "--stdin")
}

// savedChanges are those of the push, and a ref more for each commit that no ref
// would have after them.
func (s *store) savedChanges(ctx context.Context, rules SaveRules, list *commandList) ([]refUpdate, error) {
	now, err := refs(ctx, s.dir, rules.prefix())
	if err != nil {
		return nil, err
	}
	after := map[string]string{}
	for _, r := range now {
		after[r.name] = r.id
	}
	var changes []refUpdate
	var lost []string
	for _, c := range list.commands {
		old, id := after[c.ref], c.new
		if c.deletes() {
			id = ""
		}
		if old != "" && old != id {
			lost = append(lost, old)
		}
		if old != id {
			changes = append(changes, refUpdate{c.ref, id})
		}
		if after[c.ref] = id; id == "" {
			delete(after, c.ref)
		}
	}
	for _, old := range lost {
		var out bytes.Buffer
		if err := s.git(ctx, revisions([]string{old}, slices.Collect(maps.Values(after))), &out, "rev-list", "--max-count=1", "--stdin"); err != nil {
			return nil, err
		}
		if out.Len() > 0 {
			after[rules.prefix()+"kept/"+old] = old
			changes = append(changes, refUpdate{rules.prefix() + "kept/" + old, old})
		}
	}
	return changes, nil
}

// usedFile counts what was kept of an issue's agent, in bytes.
func (s *store) usedFile(issue int64) string {
	return filepath.Join(s.dir, fmt.Sprintf("saved-%d", issue))
}

func (s *store) used(issue int64) (int64, error) {
	b, err := os.ReadFile(s.usedFile(issue))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is damaged: remove it, and the count begins anew", s.usedFile(issue))
	}
	return n, nil
}

func (s *store) setUsed(issue, n int64) error {
	return replaceFile(s.usedFile(issue), strconv.FormatInt(n, 10)+"\n")
}

// Forget removes what was saved of an issue's agent, and the objects that nothing
// else needs.
func (w *Work) Forget(ctx context.Context, repo, issue int64) error {
	s := w.storeAt(repo)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	saved, err := refs(ctx, s.dir, SaveRules{Issue: issue}.prefix())
	if err != nil {
		return err
	}
	var gone []refUpdate
	for _, r := range saved {
		gone = append(gone, refUpdate{name: r.name})
	}
	if len(gone) > 0 {
		if err := s.update(ctx, gone...); err != nil {
			return err
		}
	}
	if err := os.Remove(s.usedFile(issue)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.compact(ctx)
}

// tellRefs answers git's first question of a push.
func tellRefs(rw http.ResponseWriter, lines []string, format, more string) {
	caps := "\x00report-status side-band-64k quiet ofs-delta object-format=" + format + more + " agent=devaipod"
	if len(lines) == 0 {
		lines = []string{strings.Repeat("0", map[string]int{"sha1": 40, "sha256": 64}[format]) + " capabilities^{}"}
	}
	rw.Header().Set("Content-Type", "application/x-git-receive-pack-advertisement")
	rw.Header().Set("Cache-Control", "no-cache")
	out := bufio.NewWriter(rw)
	_, _ = out.Write(append(appendPktLine(nil, "# service=git-receive-pack\n"), "0000"...))
	for i, line := range lines {
		if i == 0 {
			line += caps
		}
		_, _ = out.Write(appendPktLine(nil, line+"\n"))
	}
	_, _ = out.WriteString("0000")
	_ = out.Flush() // the client is gone: nobody to tell
}
