package mirror

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// A violation is one reason not to take a push.
type violation struct {
	rule   string // "protected path"
	path   string // "" for what concerns no file
	line   int    // 0 for none
	commit string
	why    string
	next   string // what to do about it
	lift   bool   // a trusted person may allow it
}

// place is where it is, for a person.
func (v violation) place() string {
	var b strings.Builder
	b.WriteString(v.rule)
	if v.path != "" {
		fmt.Fprintf(&b, " %s", shownPath(v.path))
	}
	if v.line > 0 {
		fmt.Fprintf(&b, ", line %d", v.line)
	}
	if v.commit != "" {
		fmt.Fprintf(&b, ", in commit %.12s", v.commit)
	}
	return b.String()
}

// shownPath is a path for a person, who may type it.
func shownPath(path string) string {
	if quoted := strconv.QuoteToGraphic(path); quoted != `"`+path+`"` {
		return quoted
	}
	return path
}

// Bounds on one inspection.
const (
	maxViolations = 20
	maxSearched   = 64 << 20 // bytes of added text that are searched for secrets
	maxLine       = 1 << 20  // bytes of a line that are
)

// An inspection looks at the commits that tips have and trusted have not. All
// that it reads is hostile.
type inspection struct {
	// git runs a child with the push's objects, boxed.
	git       func(ctx context.Context, in io.Reader, out io.Writer, args ...string) error
	tips      []string
	trusted   []string
	protected protected

	mu    sync.Mutex
	found []violation
}

func (i *inspection) add(v violation) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.found) < maxViolations {
		i.found = append(i.found, v)
	}
}

// run returns what is wrong, in the order of the rules.
func (i *inspection) run(ctx context.Context) ([]violation, error) {
	var changes, secrets error
	var wait sync.WaitGroup
	wait.Go(func() { changes = i.changes(ctx) })
	wait.Go(func() { secrets = i.additions(ctx) })
	wait.Wait()
	if err := errors.Join(changes, secrets); err != nil {
		return nil, err
	}
	slices.SortStableFunc(i.found, func(a, b violation) int {
		return strings.Compare(a.rule+a.path, b.rule+b.path)
	})
	return i.found, nil
}

// log walks the commits. A merge is compared with what git itself makes of its
// parents: what differs from that is what its author did.
func (i *inspection) log(ctx context.Context, read func(r *bufio.Reader) error, args ...string) error {
	return i.pipe(ctx, revisions(i.tips, i.trusted), read, append([]string{
		"log", "--stdin", "--encoding=none", "--remerge-diff", "--no-renames", "--no-abbrev", "--no-color", "--no-decorate", "--no-show-signature", "--no-notes", "--no-mailmap", "--no-ext-diff", "--no-textconv",
	}, args...)...)
}

// pipe has read take what git says, as it comes.
func (i *inspection) pipe(ctx context.Context, in io.Reader, read func(r *bufio.Reader) error, args ...string) error {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := read(bufio.NewReaderSize(r, 64<<10))
		r.CloseWithError(err)
		done <- err
	}()
	err := i.git(ctx, in, w, args...)
	w.CloseWithError(err)
	if e := <-done; e != nil && !errors.Is(e, err) {
		return e
	}
	return err
}

// changes looks at which files each commit changes.
func (i *inspection) changes(ctx context.Context) error {
	added := map[string]string{} // path to the commit that adds it
	err := i.log(ctx, func(r *bufio.Reader) error { return i.readChanges(r, added) }, "--format=%x01%H %P", "--raw", "-r", "-z")
	if err != nil || len(added) == 0 {
		return err
	}
	return i.collisions(ctx, added)
}

// readChanges takes the records of git log --raw -z: the head of a commit, and
// for each change its modes and, apart, its path.
func (i *inspection) readChanges(r *bufio.Reader, added map[string]string) error {
	commit := ""
	for {
		token, err := r.ReadString(0)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		token = strings.TrimPrefix(strings.TrimSuffix(token, "\x00"), "\n")
		if head, ok := strings.CutPrefix(token, "\x01"); ok {
			f := strings.Fields(head)
			if len(f) == 0 {
				return fmt.Errorf("git log said %.80q", token)
			}
			if commit = f[0]; len(f) > 3 {
				i.add(violation{rule: "octopus merge", commit: commit, why: "a merge of more than two commits can't be looked at", next: "merge one branch after the other"})
				_, err := io.Copy(io.Discard, r) // git itself does not know how, and says so here
				return err
			}
			continue
		}
		f := strings.Fields(token)
		if len(f) != 5 || !strings.HasPrefix(f[0], ":") {
			return fmt.Errorf("git log said %.80q", token)
		}
		path, err := r.ReadString(0)
		if err != nil {
			return unexpected(err)
		}
		path = strings.TrimSuffix(path, "\x00")
		i.change(commit, path, strings.TrimPrefix(f[0], ":"), f[1], added)
	}
}

// change looks at one file that a commit changes.
func (i *inspection) change(commit, path, before, after string, added map[string]string) {
	if i.protected.match(path, after) {
		i.add(violation{
			rule: "protected path", path: path, commit: commit, lift: true,
			why:  "an agent does not change what runs with the forge's rights: workflows, code owners, dev containers",
			next: "take the change out of that commit (git rebase -i, or git commit --amend) and push again",
		})
	}
	if before != "000000" {
		return
	}
	if why := tricky(path); why != "" {
		i.add(violation{rule: "name", path: path, commit: commit, why: why, next: "give the file another name in that commit and push again"})
	}
	added[path] = commit
}

// collisions finds added names that another of the same tree differs from in
// nothing that every file system sees.
func (i *inspection) collisions(ctx context.Context, added map[string]string) error {
	exact := map[string]string{} // by folded name, of each part of each added path
	for path, commit := range added {
		for end := range len(path) + 1 {
			if end < len(path) && path[end] != '/' {
				continue
			}
			name := path[:end]
			if other, ok := exact[fold(name)]; ok && other != name {
				i.addCollision(name, other, commit)
			}
			exact[fold(name)] = name
		}
	}
	for _, tip := range i.tips {
		err := i.pipe(ctx, nil, func(r *bufio.Reader) error {
			for {
				path, err := r.ReadString(0)
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				path = strings.TrimSuffix(path, "\x00")
				if mine, ok := exact[fold(path)]; ok && mine != path {
					i.addCollision(mine, path, tip)
				}
			}
		}, "ls-tree", "-r", "-t", "-z", "--name-only", "--full-tree", tip)
		if err != nil {
			return err
		}
	}
	return nil
}

func (i *inspection) addCollision(path, other, commit string) {
	i.add(violation{
		rule: "name", path: path, commit: commit, next: "give the file another name and push again",
		why: fmt.Sprintf("%s is there too, and some file systems take the two for one", shownPath(other)),
	})
}

// additions searches what each commit adds for secrets.
func (i *inspection) additions(ctx context.Context) error {
	s := &searcher{found: func(v violation) { i.add(v) }}
	return i.log(ctx, s.read, "--format=%x00%H%n%B%n%x00", "--patch", "--unified=0", "--src-prefix=a/", "--dst-prefix=b/")
}

// A searcher reads patches, as git log --patch prints them, and searches the
// lines that they add.
type searcher struct {
	found func(violation)

	commit   string
	path     string
	text     strings.Builder
	lines    []int // the number in the file of each line in text
	at       int   // of the next line in the file
	old, new int   // lines of the hunk that are to come
	searched int   // bytes, in all
}

func (s *searcher) read(r *bufio.Reader) error {
	message := false
	for {
		line, err := readLine(r)
		if errors.Is(err, io.EOF) {
			return s.flush()
		}
		if err != nil {
			return err
		}
		switch head, marked := bytes.CutPrefix(line, []byte{0}); {
		case s.old == 0 && s.new == 0 && marked && message:
			err, message = s.flush(), false
		case s.old == 0 && s.new == 0 && marked:
			err, message = s.flush(), true
			s.commit, s.path, s.at = string(head), "", 1
		case message:
			s.add(line)
		default:
			err = s.patch(line)
		}
		if err != nil {
			return err
		}
		if s.searched > maxSearched {
			s.found(violation{rule: "size", why: fmt.Sprintf("the push adds more text than is searched for secrets at once (%s)", bytesText(maxSearched)), next: "push less at a time"})
			_, err := io.Copy(io.Discard, r)
			return err
		}
	}
}

// readLine reads a line without its end; of a long one only the beginning.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if room := maxLine - len(line); room > 0 {
			line = append(line, part[:min(room, len(part))]...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if errors.Is(err, io.EOF) && len(line) > 0 {
			err = nil
		}
		return bytes.TrimSuffix(line, []byte("\n")), err
	}
}

// patch takes a line of a patch: within a hunk as many as its head says, since a
// line of a file can look like anything.
func (s *searcher) patch(line []byte) error {
	text := string(line)
	if s.old > 0 || s.new > 0 {
		switch {
		case strings.HasPrefix(text, "+"):
			s.new--
			s.add(line[1:])
		case strings.HasPrefix(text, "-"):
			s.old--
		case strings.HasPrefix(text, " "):
			s.old, s.new, s.at = s.old-1, s.new-1, s.at+1
		case !strings.HasPrefix(text, `\`):
			return fmt.Errorf("git log said %.80q within a hunk", text)
		}
		return nil
	}
	switch {
	case strings.HasPrefix(text, "+++ "):
		err := s.flush()
		s.path = unquote(strings.TrimSuffix(text[4:], "\t"))
		return err
	case strings.HasPrefix(text, "@@ "):
		return s.hunk(text)
	}
	return nil
}

// hunk reads "@@ -1,2 +3,4 @@".
func (s *searcher) hunk(text string) error {
	f := strings.Fields(text)
	if len(f) < 4 {
		return fmt.Errorf("git log said %.80q", text)
	}
	var err1, err2 error
	_, s.old, err1 = span(strings.TrimPrefix(f[1], "-"))
	s.at, s.new, err2 = span(strings.TrimPrefix(f[2], "+"))
	return errors.Join(err1, err2)
}

func span(text string) (from, count int, err error) {
	a, b, several := strings.Cut(text, ",")
	if from, err = strconv.Atoi(a); err != nil || !several {
		return from, 1, err
	}
	count, err = strconv.Atoi(b)
	return from, count, err
}

// unquote is a path as git prints it, without its prefix.
func unquote(path string) string {
	if strings.HasPrefix(path, `"`) {
		if plain, err := strconv.Unquote(path); err == nil {
			path = plain
		}
	}
	return strings.TrimPrefix(path, "b/")
}

// add takes a line that was added.
func (s *searcher) add(line []byte) {
	s.text.Write(line)
	s.text.WriteByte('\n')
	s.lines = append(s.lines, s.at)
	s.at++
	s.searched += len(line) + 1
}

// flush searches what was added to one file, or the text of a commit.
func (s *searcher) flush() error {
	text, lines := s.text.String(), s.lines
	s.text.Reset()
	s.lines = nil
	if text == "" {
		return nil
	}
	found, err := findSecrets(s.path, text)
	for _, f := range found {
		v := violation{
			rule: "secret", path: s.path, commit: s.commit, lift: s.path != "",
			why:  fmt.Sprintf("it looks like a secret (%s); whoever reads the repository could use it", gitproc.Printable(f.kind)),
			next: "take it out of that commit (git rebase -i, or git commit --amend) and push again",
		}
		if f.line >= 0 && f.line < len(lines) && s.path != "" {
			v.line = lines[f.line]
		}
		if s.path == "" {
			v.rule = "secret in the message"
		}
		s.found(v)
	}
	return err
}

// ParsePath reads a path as refusals tell it to people: as it is, or quoted.
func ParsePath(text string) string {
	if plain, err := strconv.Unquote(text); err == nil {
		return plain
	}
	return text
}
