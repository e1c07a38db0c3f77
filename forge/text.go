package forge

import (
	"regexp"
	"strings"
)

var (
	mention  = regexp.MustCompile(`@([A-Za-z0-9_.-])`)
	keyword  = regexp.MustCompile(`(?i)\b(close[sd]?|fix(?:e[sd])?|resolve[sd]?|reopen(?:s|ed)?)(\s*:?\s+)(#|!|[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+[#!]|https?://)`)
	crossRef = regexp.MustCompile(`([#!])(\d)`)
)

// draftMark is what makes a pull request a draft, at the beginning of its title.
var draftMark = regexp.MustCompile(`(?i)^\s*(wip:|\[wip\])\s*`)

// harmlessTitle takes the force out of a pull request's title: plain text, in
// which the forge looks for closing keywords and draft marks.
func harmlessTitle(s string) string {
	for draftMark.MatchString(s) {
		s = draftMark.ReplaceAllString(s, "")
	}
	s = keyword.ReplaceAllString(s, "$1$2\u200b$3")
	return crossRef.ReplaceAllString(s, "$1\u200b$2")
}

// Harmless takes the force out of text that an agent wrote, for posting in our
// name: mentions, closing keywords, references to issues, images (which would
// be fetched by the reader's browser), HTML (and with it hidden comments), and
// characters that reorder or control. Ordinary markdown stays readable.
func Harmless(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r < ' ' || (r >= 0x7f && r < 0xa0):
			return -1
		case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r >= 0x200b && r <= 0x200f, r == 0x2060, r == 0xfeff:
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.NewReplacer("<", "&lt;", "![", "!\u200b[").Replace(s)
	s = keyword.ReplaceAllString(s, "$1$2\u200b$3")
	s = crossRef.ReplaceAllString(s, "$1\u200b$2")
	return mention.ReplaceAllString(s, "@\u200b$1")
}
