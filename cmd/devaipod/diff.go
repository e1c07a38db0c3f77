package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"codeberg.org/devaipod/devaipod/mirror"
)

// diffArgs is what `devaipod diff` is asked for.
type diffArgs struct {
	stat, names bool
	base        string
}

func (a *app) diffCmd() *cobra.Command {
	var d diffArgs
	cmd := &cobra.Command{
		Use: "diff ISSUE", Short: "Show what an agent has changed, committed or not", Args: args(cobra.ExactArgs(1)),
		Long: `Show what an agent has changed since it left the forge's branches, as it was saved
last: committed or not, pushed or not. Neither pod, service nor forge is needed.

On a terminal it is in colours, and what could be an order to the terminal is shown
instead of obeyed; elsewhere it is as git wrote it, and can be applied.`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			k, err := a.issueKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			work, err := a.findSaved(cmd.Context(), k)
			if err != nil {
				return err
			}
			return a.diff(cmd.Context(), work, d)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&d.stat, "stat", false, "only how much of each file")
	f.BoolVar(&d.names, "name-only", false, "only the files' names")
	f.StringVar(&d.base, "base", "", "`branch` of the forge, or full id of a commit, to compare with (default: where the agent left the nearest branch)")
	cmd.MarkFlagsMutuallyExclusive("stat", "name-only")
	return a.jsonFlag(a.storeFlag(cmd))
}

func (a *app) diff(ctx context.Context, work foundWork, d diffArgs) error {
	snap, view, err := work.newest(ctx)
	if err != nil {
		return err
	}
	base, err := work.Base(ctx, snap, d.base)
	if errors.Is(err, mirror.ErrNoBase) {
		return fmt.Errorf("%w; name a branch or a commit with --base", err)
	}
	if err != nil {
		return err
	}
	if a.asJSON {
		return a.diffJSON(ctx, work, base, view)
	}
	a.tell(view)
	var how []string
	switch {
	case d.stat:
		how = []string{"--stat=" + strconv.Itoa(a.width())}
	case d.names:
		how = []string{"--name-only"}
	}
	if !a.onTerminal() {
		return work.Diff(ctx, a.out, base, snap.ID, how...)
	}
	p := &patchPrinter{out: bufio.NewWriter(a.out), colour: len(how) == 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
	return errors.Join(work.Diff(ctx, p, base, snap.ID, how...), p.close())
}

// onTerminal tells whether a person reads stdout.
func (a *app) onTerminal() bool {
	f, ok := a.out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// width is the terminal's, in columns.
func (a *app) width() int {
	if f, ok := a.out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w >= 40 {
			return w
		}
	}
	return 80
}

// A diffView is `devaipod diff --json`.
type diffView struct {
	Saved savedView    `json:"saved"`
	Base  string       `json:"base"`
	Files []fileChange `json:"files"`
}

// A fileChange is one file of it; of a binary one nothing is counted.
type fileChange struct {
	Path    string `json:"path"`
	Raw     []byte `json:"raw,omitempty"` // the path's bytes where they are not UTF-8
	Added   int    `json:"added"`
	Deleted int    `json:"deleted"`
	Binary  bool   `json:"binary,omitempty"`
}

func (a *app) diffJSON(ctx context.Context, work foundWork, base string, view savedView) error {
	var out bytes.Buffer
	if err := work.Diff(ctx, &out, base, view.Commit, "--numstat", "-z", "--no-renames"); err != nil {
		return err
	}
	v := diffView{Saved: view, Base: base, Files: []fileChange{}}
	for entry := range strings.SplitSeq(strings.TrimSuffix(out.String(), "\x00"), "\x00") {
		parts := strings.SplitN(entry, "\t", 3)
		if len(parts) < 3 {
			continue
		}
		added, err := strconv.Atoi(parts[0])
		deleted, err2 := strconv.Atoi(parts[1])
		f := fileChange{Path: parts[2], Added: added, Deleted: deleted, Binary: err != nil || err2 != nil}
		if !utf8.ValidString(f.Path) {
			f.Raw, f.Path = []byte(f.Path), strings.ToValidUTF8(f.Path, "\uFFFD")
		}
		v.Files = append(v.Files, f)
	}
	return a.printJSON(v)
}

// A patchPrinter shows git's output to a person: what could be an order to the
// terminal as text, and a patch's lines in colours of its own. It counts a hunk's
// lines, so that no line of a file passes for a header.
type patchPrinter struct {
	out    *bufio.Writer
	colour bool

	line     []byte
	old, new int // lines that the hunk still has
}

func (p *patchPrinter) Write(b []byte) (int, error) {
	n := len(b)
	for {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		p.line = append(p.line, line...)
		if !whole {
			return n, nil
		}
		b = rest
		if err := p.print(); err != nil {
			return 0, err
		}
	}
}

// close prints what is left.
func (p *patchPrinter) close() error {
	if len(p.line) > 0 {
		if err := p.print(); err != nil {
			return err
		}
	}
	return p.out.Flush()
}

func (p *patchPrinter) print() error {
	colour := p.classify(p.line)
	text := visible(p.line)
	p.line = p.line[:0]
	if p.colour && colour != "" {
		text = colour + text + "\x1b[m"
	}
	_, err := p.out.WriteString(text + "\n")
	return err
}

const (
	bold  = "\x1b[1m"
	cyan  = "\x1b[36m"
	green = "\x1b[32m"
	red   = "\x1b[31m"
)

var hunkHead = regexp.MustCompile(`^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@`)

// classify tells a line's colour.
func (p *patchPrinter) classify(line []byte) string {
	if p.old > 0 || p.new > 0 {
		switch {
		case len(line) > 0 && line[0] == '+':
			p.new--
			return green
		case len(line) > 0 && line[0] == '-':
			p.old--
			return red
		case len(line) > 0 && line[0] == '\\': // no newline at the end of the file
			return ""
		}
		p.old, p.new = p.old-1, p.new-1
		return ""
	}
	m := hunkHead.FindSubmatch(line)
	if m == nil {
		return bold
	}
	p.old, p.new = lines(m[1]), lines(m[2])
	return cyan
}

// lines reads a hunk's count, which is left out where it is 1.
func lines(count []byte) int {
	n, err := strconv.Atoi(string(count))
	if err != nil {
		return 1
	}
	return n
}

// visible shows what is not plain text instead of handing it on: control
// characters as ^[, what is not UTF-8 as \x9b, and what reorders or hides text as
// <U+202E>.
func visible(line []byte) string {
	var b strings.Builder
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, line[0])
		case r == '\t' || unicode.IsGraphic(r):
			b.WriteRune(r)
		case r < 0x80:
			b.WriteString("^" + string(r^0x40))
		default:
			fmt.Fprintf(&b, "<U+%04X>", r)
		}
		line = line[n:]
	}
	return b.String()
}
