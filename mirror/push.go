package mirror

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// A push on its way through the gate (invariant S4). Its pack goes to git in a
// quarantine of ours and to the forge at the same time, but for its last bytes:
// the forge gets those, without which it throws the rest away, once the push is
// taken.
type push struct {
	w     *Work
	rules Rules
	at    *place
	list  *commandList
	rw    http.ResponseWriter
	r     *http.Request
	q     *quarantine

	forge *forgePush
	facts func() (*facts, error) // as of the push's begin
}

// Facts are what the commits of a push are held against.
type facts struct {
	trusted  []string
	branches []ref // of agents
}

// A refusal is why a push is not taken, in words for each of its refs.
type refusal struct {
	short string   // one line
	lines []string // more of it
	kept  bool     // it is taken, and the forge gets it later
}

func (r *refusal) Error() string { return r.short }

// run takes the push or refuses it, and answers.
func (p *push) run(body io.Reader) {
	err := p.take(p.r.Context(), body)
	if err == nil || p.r.Context().Err() != nil {
		return
	}
	var no *refusal
	if !errors.As(err, &no) {
		p.w.log.Warn("a push failed", "repo", p.at.get(), "err", err)
		no = &refusal{short: "devaipod could not take the push; try again in a minute (its log has more)"}
		if errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "No space left") {
			no = &refusal{short: "devaipod's disk is full; push again when somebody has made room (devaipod df)"}
		}
	} else {
		p.w.log.Warn("push refused", "repo", p.at.get(), "why", no.short)
		if !no.kept {
			p.w.refused(p.rules.delivery(p.at.get(), p.list, nil), no.short)
		}
	}
	reasons := map[string]string{}
	for _, c := range p.list.commands {
		reasons[c.ref] = no.short
	}
	p.w.refuse(p.rw, p.list, body, reasons, no.lines)
}

func (p *push) take(ctx context.Context, body io.Reader) error {
	known, ok := p.w.copy(p.at.get(), p.rules.RepoID)
	if !ok {
		var err error
		if known, err = p.w.known(ctx, p.at.get()); err != nil {
			return fmt.Errorf("reading what the forge has: %w", err)
		}
	}
	format := "sha1"
	if len(p.list.commands[0].new) == 64 {
		format = "sha256"
	}
	s, err := p.w.openStore(ctx, p.rules.RepoID, known, format)
	if err == nil {
		err = s.named(p.at.get())
	}
	if err != nil {
		return err
	}
	if p.q, err = s.quarantine(); err != nil {
		return err
	}
	defer p.q.close() //nolint:errcheck // the next start sweeps
	ctx, stop := context.WithCancel(ctx)
	defer stop() // which ends a request to the forge that was not completed
	p.facts = sync.OnceValues(func() (*facts, error) { return p.q.facts(ctx, p.rules.BranchPrefix) })
	go p.facts() //nolint:errcheck // whoever needs them sees the error
	p.forge = p.w.pushTo(ctx, p.r, p.at.get(), p.list.raw)
	trailer, err := p.unpack(ctx, body)
	if err != nil {
		return err
	}
	if err := p.keepReviewed(ctx); err != nil {
		return err
	}
	if err := p.keepOthers(ctx); err != nil {
		return err
	}
	lifts, err := p.judge(ctx)
	if err != nil {
		return err
	}
	return p.deliver(ctx, trailer, lifts)
}

// keepReviewed refuses to take a commit that people have reviewed off its branch. A branch that
// lost it already, by somebody else's push, is free.
func (p *push) keepReviewed(ctx context.Context) error {
	if p.rules.Reviewed == nil {
		return nil
	}
	reviewed, err := p.rules.Reviewed()
	if err != nil || reviewed == "" {
		return err
	}
	for _, c := range p.list.commands {
		had, err := p.has(ctx, c.old, reviewed)
		if err != nil {
			return err
		}
		has, err := p.has(ctx, c.new, reviewed)
		if err != nil {
			return err
		}
		if had && !has {
			return &refusal{short: fmt.Sprintf("commit %.10s was reviewed, and stays as it is", reviewed), lines: []string{
				"What to do: add commits to it (git fetch origin; git merge origin/" + strings.TrimPrefix(c.ref, "refs/heads/") + "), and push without force. No amend and no rebase of what was pushed; to bring the base in, merge it.",
			}}
		}
	}
	return nil
}

// has tells whether a commit is, or comes after, another one. Neither need be here.
func (p *push) has(ctx context.Context, commit, other string) (bool, error) {
	var kinds bytes.Buffer
	if err := p.q.git(ctx, strings.NewReader(commit+"\n"+other+"\n"), &kinds, "cat-file", "--batch-check=%(objecttype)"); err != nil {
		return false, err
	}
	if kinds.String() != "commit\ncommit\n" {
		return false, nil
	}
	var left bytes.Buffer
	err := p.q.git(ctx, nil, &left, "rev-list", "--max-count=1", other, "^"+commit)
	return err == nil && left.Len() == 0, err
}

// unpack reads the pack into the quarantine, and to the forge as far as it may
// have it yet.
func (p *push) unpack(ctx context.Context, body io.Reader) (trailer []byte, err error) {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		args := []string{"index-pack", "--stdin", "--fix-thin", "--strict=" + strings.Join(gitproc.Forgiven, "=ignore,") + "=ignore"}
		err := p.q.git(ctx, r, io.Discard, args...)
		r.CloseWithError(errors.Join(errIndexed, err))
		done <- err
	}()
	trailer, err = readPack(body, len(p.list.commands[0].new)/2, p.w.limits, func(b []byte) error {
		if _, err := w.Write(b); err != nil {
			return err
		}
		p.forge.write(b)
		return nil
	})
	if err == nil {
		_, err = w.Write(trailer)
	}
	w.CloseWithError(err)
	indexed := <-done
	var limit *LimitError
	var said *gitproc.Error
	switch {
	case errors.As(err, &limit):
		return nil, &refusal{short: limit.What, lines: []string{"What to do: " + limit.Next + "."}}
	case errors.Is(err, errPack):
		return nil, &refusal{short: err.Error()}
	case errors.As(indexed, &said) && ours.MatchString(said.Said):
		return nil, indexed
	case errors.As(indexed, &said) && lacking.MatchString(said.Said):
		if _, err := p.w.known(ctx, p.at.get()); err != nil {
			return nil, fmt.Errorf("reading what the forge has: %w", err)
		}
		return nil, &refusal{short: "the push builds on commits that were not known here yet; they are now: push again"}
	case errors.As(indexed, &said) && (err == nil || errors.Is(err, errIndexed)):
		return nil, &refusal{short: "git refuses the push's objects: " + said.Said, lines: []string{"What to do: make the commit that has them anew, without what git complains of, and push again."}}
	case err != nil:
		return nil, err
	}
	return trailer, indexed
}

// ours is what git says of this machine, and not of what was pushed.
var ours = regexp.MustCompile(`No space left|Disk quota|Read-only file|Input/output error|Permission denied|[Uu]nable to create|[Cc]annot fork`)

// lacking is what git says of a pack whose deltas build on what is not here.
var lacking = regexp.MustCompile(`unresolved delta|did not receive expected object`)

// errIndexed ends the writing to a git that has ended.
var errIndexed = errors.New("git reads no further")

// judge looks at the commits that are new, and returns the permissions that they
// need. What is wrong by the cache's copy as it is may be right by a newer one.
func (p *push) judge(ctx context.Context) ([]Lift, error) {
	known, err := p.facts()
	if err != nil {
		return nil, err
	}
	found, err := p.inspect(ctx, known)
	if err == nil && len(found) > 0 {
		if p.q.known, err = p.w.known(ctx, p.at.get()); err != nil {
			return nil, fmt.Errorf("reading what the forge has: %w", err)
		}
		if known, err = p.q.facts(ctx, p.rules.BranchPrefix); err != nil {
			return nil, err
		}
		found, err = p.inspect(ctx, known)
	}
	var said *gitproc.Error
	if errors.As(err, &said) {
		return nil, &refusal{short: "the push's commits can't be read: " + said.Said, lines: []string{"What to do: look whether git fsck finds your clone sound, and push again."}}
	}
	if err != nil || len(found) == 0 {
		return nil, err
	}
	rest, used := p.lift(ctx, found)
	if len(rest) > 0 {
		return nil, refuse(rest)
	}
	return used, nil
}

func (p *push) inspect(ctx context.Context, known *facts) ([]violation, error) {
	i := &inspection{git: p.q.git, trusted: known.trusted, protected: p.w.protected}
	for _, c := range p.list.commands {
		i.tips = append(i.tips, c.new)
	}
	known.alike(p.list, i.add)
	return i.run(ctx)
}

// lift takes off what a trusted person has allowed and was not used up.
func (p *push) lift(ctx context.Context, found []violation) (rest []violation, used []Lift) {
	var all []Lift
	for _, v := range found {
		if v.lift && all == nil && p.rules.Lifts != nil {
			var err error
			if all, err = p.unused(ctx); err != nil {
				p.w.log.Warn("what people allow could not be asked", "repo", p.at.get(), "err", err)
				all = []Lift{}
			}
		}
		i := slices.IndexFunc(all, func(l Lift) bool { return v.lift && l.Path == v.path })
		switch {
		case i < 0:
			rest = append(rest, v)
		case !slices.Contains(used, all[i]):
			used = append(used, all[i])
		}
	}
	return rest, used
}

// unused are the permissions that no push has used yet.
func (p *push) unused(ctx context.Context) ([]Lift, error) {
	all, err := p.rules.Lifts(ctx)
	if err != nil {
		return nil, err
	}
	spent, err := refs(ctx, p.q.dir, lifted)
	if err != nil {
		return nil, err
	}
	out := []Lift{}
	for _, l := range all {
		gone := false
		for _, r := range spent {
			gone = gone || r.name == lifted+l.ID
		}
		if !gone {
			out = append(out, l)
		}
	}
	return out, nil
}

// refuse tells all that is wrong.
func refuse(found []violation) *refusal {
	r := &refusal{short: found[0].place()}
	if n := len(found) - 1; n > 0 {
		r.short += fmt.Sprintf(" (and %d more)", n)
	}
	for _, v := range found {
		r.lines = append(r.lines, v.place()+": "+v.why+".", "  What to do: "+v.next+".")
		if v.lift {
			r.lines = append(r.lines, `  If the task needs it, say so: somebody who may push here can allow it once, with the comment "/allow-path `+shownPath(v.path)+`" on the issue.`)
		}
	}
	return r
}

// deliver gives the forge the rest, while it is noted who pushed, and the client the
// forge's answer once what it tells is recorded. A forge that is away gets the push
// later.
func (p *push) deliver(ctx context.Context, trailer []byte, lifts []Lift) error {
	ctx = context.WithoutCancel(ctx) // it is taken: a client that is gone changes nothing
	defer p.goes()()
	noted := make(chan error, 1)
	go func() { noted <- p.note(ctx) }()
	said, err := p.forge.finish(trailer)
	recordErr := <-noted
	var no *refusal
	switch {
	case errors.As(err, &no):
		return err
	case err != nil && recordErr == nil:
		return p.postpone(ctx, lifts, err)
	case err != nil:
		return recordErr
	}
	var done []refUpdate
	for _, c := range p.list.commands {
		if said.ok[c.ref] {
			done = append(done, refUpdate{accepted + strings.TrimPrefix(c.ref, "refs/"), c.new})
		}
	}
	if len(done) > 0 {
		p.w.delivered(p.delivery(said, lifts))
		recordErr = errors.Join(recordErr, p.record(ctx, done, lifts))
	}
	if recordErr != nil {
		p.w.log.Error("a push that the forge has could not be recorded", "repo", p.at.get(), "err", recordErr)
	}
	p.rw.Header().Set("Content-Type", "application/x-git-receive-pack-result")
	p.rw.Header().Set("Cache-Control", "no-cache")
	_, _ = p.rw.Write(said.raw) // the client is gone: nobody to tell
	return nil
}

// delivery is what the forge took.
func (p *push) delivery(said *pushAnswer, lifts []Lift) Delivery {
	d := p.rules.delivery(p.at.get(), p.list, said.ok)
	for _, l := range lifts {
		d.Lifts = append(d.Lifts, l.Path)
	}
	return d
}

// postpone keeps a push for a forge that is away.
func (p *push) postpone(ctx context.Context, lifts []Lift, why error) error {
	p.w.log.Warn("the forge did not take a push; it is kept, and delivered later", "repo", p.at.get(), "err", why)
	var waiting []refUpdate
	for _, c := range p.list.commands {
		waiting = append(waiting, refUpdate{pending + strings.TrimPrefix(c.ref, "refs/"), c.new})
	}
	if err := p.record(ctx, waiting, lifts); err != nil {
		return err
	}
	p.w.kick()
	return &refusal{kept: true, short: "not on the forge yet: it does not answer; devaipod keeps the commits and delivers them", lines: []string{
		"The push was looked at and would have been taken, but the forge does not answer.",
		"Your commits are kept here and go to the forge by themselves when it is back.",
		"What to do: go on working. Pushing again later is not needed, and does no harm.",
	}}
}

// note notes with each commit who pushed it.
func (p *push) note(ctx context.Context) error {
	text, err := json.Marshal(Provenance{Pusher: p.rules.Pusher(), At: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	p.q.mu.Lock()
	defer p.q.mu.Unlock()
	for _, c := range p.list.commands {
		err = errors.Join(err, p.q.note(ctx, c.new, text))
	}
	return err
}

// record keeps the objects, and then the refs that need them, with those of the
// permissions that the push used up.
func (p *push) record(ctx context.Context, changes []refUpdate, lifts []Lift) error {
	for _, l := range lifts {
		changes = append(changes, refUpdate{lifted + l.ID, p.list.commands[0].new})
	}
	p.q.mu.Lock()
	defer p.q.mu.Unlock()
	if err := p.q.keep(); err != nil {
		return err
	}
	return p.q.update(ctx, changes...)
}

// A forgePush is a push's request to the forge.
type forgePush struct {
	body *io.PipeWriter
	done chan struct{}
	resp *http.Response
	err  error
	away bool
}

// pushTo begins one with head, its list of commands.
func (w *Work) pushTo(ctx context.Context, r *http.Request, repo string, head []byte) *forgePush {
	pr, pw := io.Pipe()
	f := &forgePush{body: pw, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		body := struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(head), pr), pr}
		f.resp, f.err = w.ask(r.Clone(ctx), repo, "/git-receive-pack", body) //nolint:bodyclose // by finish, or by ctx
		if f.err != nil || f.resp.StatusCode != http.StatusOK {
			pr.CloseWithError(errAnswered)
		}
	}()
	return f
}

// errAnswered ends the sending to a forge that has answered.
var errAnswered = errors.New("the forge takes no more")

// write passes on a part of the pack. A forge that takes no more is found out at
// the end.
func (f *forgePush) write(b []byte) {
	if !f.away {
		_, err := f.body.Write(b)
		f.away = err != nil
	}
}

// maxAnswer bounds a forge's answer to a push, in bytes.
const maxAnswer = 4 << 20

// A pushAnswer is what the forge says of a push.
type pushAnswer struct {
	raw []byte
	ok  map[string]bool // the refs that it took
}

// finish sends the rest and reads the answer. An error means that the forge is
// away, or that nobody knows what became of it.
func (f *forgePush) finish(rest []byte) (*pushAnswer, error) {
	f.write(rest)
	_ = f.body.Close() // always nil
	<-f.done
	if f.err != nil {
		return nil, f.err
	}
	defer f.resp.Body.Close()
	switch code := f.resp.StatusCode; {
	case code == http.StatusOK:
	case code/100 == 5 || code == http.StatusTooManyRequests:
		return nil, fmt.Errorf("the forge answered %s", f.resp.Status)
	default:
		return nil, &refusal{short: fmt.Sprintf("the forge answered %d; a person has to look (devaipod forge status)", code)}
	}
	raw, err := io.ReadAll(io.LimitReader(f.resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	ok, err := readReport(raw)
	return &pushAnswer{raw, ok}, err
}

// readReport reads which refs were taken (gitprotocol-pack(5), Report Status),
// within a side band or without.
func readReport(raw []byte) (map[string]bool, error) {
	ok := map[string]bool{}
	var inner bytes.Buffer
	report := func(line []byte) {
		if ref, is := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "ok "); is {
			ok[ref] = true
		}
	}
	err := readPkts(bufio.NewReader(bytes.NewReader(raw)), func(line []byte) {
		switch line[0] {
		case 1:
			inner.Write(line[1:])
		case 2, 3: // words for people
		default:
			report(line)
		}
	})
	if err == nil && inner.Len() > 0 {
		err = readPkts(bufio.NewReader(&inner), report)
	}
	if err != nil {
		return nil, fmt.Errorf("the forge's answer to a push: %w", err)
	}
	return ok, nil
}
