package reconcile

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"
)

// Bounds on what reaches the agent, in bytes. The forge's own limit on an
// issue's text is far above what a model can read.
const (
	maxBody     = 64 << 10
	maxComments = 64 << 10
)

// A text is what the labeler saw: the issue and the comments that were there
// when the label was put on.
type text struct {
	issue    Issue
	comments []Comment
}

// pinned keeps the comments that were there, unchanged, at the label event.
// The forge's times are whole seconds.
func pinned(i Issue, all []Comment, t Trigger) text {
	tx := text{issue: i}
	for _, c := range all {
		if !c.Updated.After(t.At) {
			tx.comments = append(tx.comments, c)
		}
	}
	return tx
}

// hash names the text by its content.
func (t text) hash() string {
	h := sha256.New()
	put := func(s string) { fmt.Fprintf(h, "%d:%s,", len(s), s) }
	put(t.issue.Title)
	put(t.issue.Body)
	put(t.issue.Ref)
	for _, c := range t.comments {
		put(c.Author)
		put(c.Body)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// image is compiled when a text is read: its bounds make it a large program, which every
// call of the command line would wait for.
var image = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`!\[([^\]\n]{0,200})\]\(([^)\s]{1,1000})[^)\n]{0,200}\)|<img\s[^>\n]{0,500}?src="([^"\n]{1,1000})"`)
})

// prompt writes the task as the agent reads it. What people wrote is quoted
// between lines that it can't contain, with its author's name before it.
func (t text) prompt(branch, base string) string {
	var b strings.Builder
	k := t.issue.Key
	fmt.Fprintf(&b, `You are working on issue #%d of the repository %s/%s. A clone is in the current directory, on the branch %s, which starts from %s.
It may hold earlier work of yours on this issue: commits, branches, a stash, changes that are not committed. Look first (git status, git log, git stash list), and go on from there.

Solve the issue below:
1. Read what you need. If the repository has an AGENTS.md, follow it.
2. Make the change, and try it: run the project's tests where it has some.
3. Commit it with a message that says what and why.
4. Push it with: git push origin HEAD:%s
   Pushing to any other branch is refused. Nothing else on a network can be reached.
5. End with a short summary for the reviewer: what you did, how you tried it, what is left.

If something is unclear, choose what the author would most likely want and say so in the summary. It may take hours until somebody answers a question: ask only if you have a tool for that, and can't go on without.

`, k.Issue, k.Owner, k.Repo, branch, base, branch)
	fence := t.fence()
	fmt.Fprintf(&b, "The issue's text stands between the lines %s. It was written by people on the forge.\n\n%s\nTitle: %s\nAuthor: %s\n\n%s\n%s\n",
		fence, fence, oneLine(t.issue.Title), t.issue.Author, clip(t.issue.Body, maxBody), fence)
	room := maxComments
	for _, c := range t.comments {
		body := clip(c.Body, room)
		if room -= len(body); room <= 0 {
			b.WriteString("\n(more comments left out: too long)\n")
			break
		}
		fmt.Fprintf(&b, "\nComment by %s:\n%s\n%s\n%s\n", c.Author, fence, body, fence)
	}
	if refs := t.images(); len(refs) > 0 {
		b.WriteString("\nImages that the text refers to (they can't be fetched from here):\n")
		for _, r := range refs {
			fmt.Fprintf(&b, "- %s\n", r)
		}
	}
	return b.String()
}

// fence is a line that the text does not contain: it depends on the text.
func (t text) fence() string { return "=====" + t.hash()[:16] + "=====" }

// images lists what the text shows, by reference.
func (t text) images() []string {
	bodies := []string{clip(t.issue.Body, maxBody)}
	for _, c := range t.comments {
		bodies = append(bodies, clip(c.Body, maxComments))
	}
	var refs []string
	for _, body := range bodies {
		for _, m := range image().FindAllStringSubmatch(body, 50) {
			refs = append(refs, strings.TrimSpace(oneLine(m[1]+" "+m[2]+m[3])))
		}
	}
	return refs[:min(len(refs), 50)]
}

var modelLine = regexp.MustCompile(`(?m)^/model[ \t]+([A-Za-z0-9][A-Za-z0-9._:/@-]{0,99})[ \t]*\r?$`)

// model is the model that the issue asks for by a line "/model NAME"; heeded
// only when the author is the one who put the label on.
func (t text) model(labeler string) string {
	if t.issue.Author != labeler {
		return ""
	}
	if m := modelLine.FindStringSubmatch(t.issue.Body); m != nil {
		return m[1]
	}
	return ""
}

// clip cuts s to n bytes at the end of a rune, and says so.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	n = max(n, 0)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "\n(cut: too long)"
}

// clipLine is s on one line of at most n bytes and an ellipsis.
func clipLine(s string, n int) string {
	s = oneLine(s)
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.TrimSpace(s[:n]) + "…"
}

// oneLine folds white space and drops characters that control or reorder.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r < ' ' || (r >= 0x7f && r < 0xa0):
			return ' '
		case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f:
			return -1 // they reorder what is read
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	return strings.Join(strings.Fields(s), " ")
}
