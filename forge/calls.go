package forge

import (
	"context"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	sdk "codeberg.org/mvdkleijn/forgejo-sdk/forgejo/v3"
)

// A Call is how somebody called the bot to an issue.
type Call struct {
	ID       int64 // of its entry in the issue's timeline
	User     string
	At       time.Time
	Assigned bool   // the bot was assigned; else it was mentioned in a comment
	Word     string // behind the mention, "" for none
}

// maxCalls is how many calls of an issue are remembered, the newest, since its label
// was put on or taken off last.
const maxCalls = 50

// CallsOf is the event that took a label that starts agents off an issue last, with how
// people called the bot since then, or ever; First says that there was no such event. It
// is empty while such a label is on. A comment that was changed calls nobody.
func (c *Client) CallsOf(ctx context.Context, r Repo, n int64, label string) (LabelEvent, error) {
	ev, ok, err := c.LabelEvent(ctx, r, n, label)
	if err != nil || ok {
		return LabelEvent{}, err
	}
	return ev, nil
}

// CallStands tells whether the comment of a mention is there still, unchanged, and was
// written on this forge: what was brought from another bears the name of who brought it.
func (c *Client) CallStands(ctx context.Context, r Repo, m Call) (bool, error) {
	var got sdk.Comment
	err := c.do(ctx, call{method: "GET", path: r.path("/issues/comments/%d", m.ID)}, &got)
	if errors.Is(err, ErrNotFound) || err == nil && got.ID == 0 { // the sibling answers 204 for one that is no comment
		return false, nil
	}
	_, mentioned := Mentioned(got.Body, c.cfg.BotUser)
	return mentioned && got.OriginalAuthor == "" && strings.EqualFold(login(got.Poster), m.User) && got.Created.Equal(got.Updated), err
}

// Called lists the open issues that mention the bot or are assigned to it, and changed
// at since or later. The forge's answer is a hint: who called, and whether in a quote,
// is in the timeline.
func (c *Client) Called(ctx context.Context, since time.Time) (out []Issue, err error) {
	for _, how := range []string{"mentioned", "assigned"} {
		found, _, err := c.searchAs(ctx, true, url.Values{"state": {"open"}, "type": {"issues"}, how: {"true"}, "since": {since.UTC().Format(time.RFC3339)}})
		if err != nil {
			return nil, err
		}
		for _, i := range found {
			if !i.IsPull && i.State == "open" {
				out = append(out, i)
			}
		}
	}
	return out, nil
}

// take notes what of a timeline's entry calls the bot, or sends it away.
func (m *labelMark) take(e timelineEntry, bot string) {
	call := Call{ID: e.ID, User: login(e.User), At: e.Created}
	switch e.Type {
	case "assignees":
		if e.Assignee == nil || !strings.EqualFold(login(e.Assignee), bot) {
			return
		}
		if m.away, m.awayBy = e.Removed, call.User; e.Removed { // who assigned it has thought better of it
			m.calls = slices.DeleteFunc(slices.Clone(m.calls), func(c Call) bool { return c.Assigned })
			return
		}
		call.Assigned = true
	case "comment":
		var mentioned bool
		if call.Word, mentioned = Mentioned(e.Body, bot); !mentioned || !e.Updated.Equal(e.Created) {
			return
		}
	default:
		return
	}
	if call.User == "" {
		return
	}
	m.calls = append(slices.Clone(m.calls), call)
	m.calls = m.calls[max(0, len(m.calls)-maxCalls):]
}

var (
	hidden   = regexp.MustCompile(`(?s)<!--.*?(?:-->|$)`)
	htmlCode = regexp.MustCompile(`(?is)<code\b.*?(?:</code>|$)|<pre\b.*?(?:</pre>|$)|<blockquote\b.*?(?:</blockquote>|$)|<kbd\b.*?(?:</kbd>|$)`)
	fenced   = regexp.MustCompile("^[\\s>*+.)0-9-]*(`{3,}|~{3,})")
	ticks    = regexp.MustCompile("`+")
	firstTok = regexp.MustCompile(`^[\s,:]*([A-Za-z0-9_-]+)`)
)

// Mentioned tells whether a text in Markdown mentions an account, in its author's own
// words: not in a quote, in code or in what is not shown. What might be one of these
// counts as one. word is what stands behind the first mention.
func Mentioned(text, account string) (word string, ok bool) {
	if account == "" || !strings.Contains(strings.ToLower(text), "@"+strings.ToLower(account)) {
		return "", false
	}
	text = spoken(text)
	lower, name := strings.ToLower(text), "@"+strings.ToLower(account)
	if len(lower) != len(text) { // some letter is shorter in lower case
		text = lower
	}
	for at := 0; ; {
		i := strings.Index(lower[at:], name)
		if i < 0 {
			return "", false
		}
		i += at
		at = i + len(name)
		before, _ := utf8.DecodeLastRuneInString(lower[:i])
		if i > 0 && (partOfName(before) || strings.ContainsRune(`\/@&#=`, before)) {
			continue
		}
		rest := lower[at:]
		end := strings.IndexFunc(rest, func(r rune) bool { return !partOfName(r) })
		if end < 0 {
			end = len(rest)
		}
		if strings.Trim(rest[:end], ".") != "" || strings.HasPrefix(rest[end:], "/") || strings.HasPrefix(rest[end:], "@") {
			continue
		}
		if m := firstTok.FindStringSubmatch(text[at:]); m != nil {
			word = m[1]
		}
		return word, true
	}
}

func partOfName(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("_.-", r)
}

// spoken is a text without quotes, code and what is not shown.
func spoken(text string) string {
	var out strings.Builder
	fence, quote := "", false
	for line := range strings.Lines(htmlCode.ReplaceAllString(hidden.ReplaceAllString(strings.ReplaceAll(text, "\r\n", "\n"), " "), " ")) {
		trimmed := strings.TrimSpace(line)
		mark := fenced.FindStringSubmatch(line)
		switch {
		case fence != "":
			if mark != nil && strings.HasPrefix(mark[1], fence) && strings.TrimRight(trimmed, fence[:1]) == "" {
				fence = ""
			}
			continue
		case mark != nil:
			fence = mark[1]
			continue
		case trimmed == "":
			quote = false
		case strings.HasPrefix(strings.TrimLeft(trimmed, "*+-0123456789.) \t"), ">"):
			quote = true // and what follows without an empty line belongs to it
		}
		if quote || strings.HasPrefix(line, "\t") || strings.HasPrefix(line, "    ") {
			out.WriteString("\n")
			continue
		}
		out.WriteString(line)
	}
	return withoutSpans(out.String())
}

// withoutSpans takes code between backticks out: as many as begin it end it, in one
// paragraph.
func withoutSpans(text string) string {
	var out strings.Builder
	for i, part := range strings.Split(text, "\n\n") {
		if i > 0 {
			out.WriteString("\n\n")
		}
		for {
			open := ticks.FindStringIndex(part)
			if open == nil {
				break
			}
			run, end := part[open[0]:open[1]], -1
			for _, m := range ticks.FindAllStringIndex(part[open[1]:], -1) {
				if m[1]-m[0] == len(run) {
					end = open[1] + m[1]
					break
				}
			}
			out.WriteString(part[:open[0]] + " ")
			if part = part[open[1]:]; end >= 0 {
				part = part[end-open[1]:]
			}
		}
		out.WriteString(part)
	}
	return out.String()
}
