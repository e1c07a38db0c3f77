package ci

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// Clean makes of what a job printed what a log may have: text with colours (SGR). Other
// escapes, control characters and those that turn the direction of text around go.
func Clean(s string) string {
	s = strings.TrimRight(s, "\r\n")
	if strings.IndexFunc(s, special) < 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for s != "" {
		if s[0] == 0x1b {
			n := escape(s)
			if isSGR(s[:n]) {
				b.WriteString(s[:n])
			}
			s = s[n:]
			continue
		}
		c, n := utf8.DecodeRuneInString(s)
		switch {
		case c == utf8.RuneError:
			b.WriteRune(utf8.RuneError)
		case c == '\r' || c == '\n':
			b.WriteByte(' ')
		case !special(c):
			b.WriteRune(c)
		}
		s = s[n:]
	}
	return b.String()
}

func special(c rune) bool {
	return c == utf8.RuneError || c != '\t' && unicode.IsControl(c) || unicode.Is(unicode.Bidi_Control, c) ||
		c == '\u2028' || c == '\u2029'
}

// escape is how many bytes the escape sequence at the start of s has (ECMA-48).
func escape(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	switch s[1] {
	case '[': // CSI: parameters, intermediates, a final byte
		i := 2
		for i < len(s) && s[i] >= 0x20 && s[i] <= 0x3f {
			i++
		}
		if i < len(s) && s[i] >= 0x40 && s[i] <= 0x7e {
			i++
		}
		return i
	case ']', 'P', 'X', '^', '_': // strings, up to BEL or ST
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b {
				return min(i+2, len(s))
			}
		}
		return len(s)
	}
	i := 1
	for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
		i++
	}
	if i < len(s) && s[i] < 0x7f && s[i] > 0x2f {
		i++
	}
	return i
}

func isSGR(s string) bool {
	if len(s) < 3 || s[1] != '[' || s[len(s)-1] != 'm' {
		return false
	}
	return strings.Trim(s[2:len(s)-1], "0123456789;:") == ""
}

// cutLine keeps a line within job.MaxLine bytes.
func cutLine(s string) string {
	const note = " … (cut)"
	if len(s) <= job.MaxLine {
		return s
	}
	return strings.ToValidUTF8(s[:job.MaxLine-len(note)], "") + note
}

// masker takes secrets out of text.
func masker(secrets []string) *strings.Replacer {
	var all []string
	for _, s := range secrets {
		all = append(all, s)
		if strings.ContainsAny(s, "\r\n") {
			all = append(all, strings.FieldsFunc(s, func(c rune) bool { return c == '\r' || c == '\n' })...)
		}
	}
	all = slices.DeleteFunc(all, func(s string) bool { return strings.TrimSpace(s) == "" })
	var pairs []string
	for _, s := range sortedByLength(all) {
		pairs = append(pairs, s, "***")
	}
	return strings.NewReplacer(pairs...)
}

// sortedByLength has the longest first: a secret may have another one in it.
func sortedByLength(all []string) []string {
	return slices.SortedFunc(slices.Values(all), func(a, b string) int { return len(b) - len(a) })
}
