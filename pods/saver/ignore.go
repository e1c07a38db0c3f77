package saver

import (
	"fmt"
	"regexp"
	"strings"
)

// The rules of gitignore(5), matched by bytes as git does. They are our own:
// git reads them only from a work tree, which the agent's must not be for any
// git of ours, and go-git is too much to bring into pods. A test holds them
// against git itself. Patterns become regular expressions of Go's, which match
// in linear time whatever an agent writes. What can't be understood ignores
// nothing, so it is saved.

const (
	maxIgnoreFile = 1 << 20 // bytes; a larger .gitignore ignores nothing
	maxPattern    = 4 << 10
)

// A rule is one line of a .gitignore.
type rule struct {
	negated, dirOnly bool
	base             bool // matched against the last part of a path alone
	match            func(string) bool
}

// parseIgnore reads a .gitignore.
func parseIgnore(text string) []rule {
	var out []rule
	for line := range strings.SplitSeq(strings.TrimPrefix(text, "\ufeff"), "\n") {
		line = trimSpaces(strings.TrimSuffix(line, "\r"))
		if line == "" || line[0] == '#' || len(line) > maxPattern {
			continue
		}
		if r, ok := parseRule(line); ok {
			out = append(out, r)
		}
	}
	return out
}

// trimSpaces cuts trailing spaces off, but one that is quoted.
func trimSpaces(line string) string {
	end := 0
	for i := 0; i < len(line); i++ {
		switch {
		case line[i] == '\\' && i+1 < len(line):
			i++
			end = i + 1
		case line[i] != ' ':
			end = i + 1
		}
	}
	return line[:end]
}

func parseRule(line string) (r rule, ok bool) {
	line, r.negated = strings.CutPrefix(line, "!")
	line, r.dirOnly = strings.CutSuffix(line, "/")
	r.base = !strings.Contains(line, "/")
	line = strings.TrimPrefix(line, "/")
	if line == "" {
		return r, false
	}
	special := strings.IndexAny(line, `*?[\`)
	switch {
	case special < 0:
		r.match = func(s string) bool { return s == line }
	case r.base && line[0] == '*' && !strings.ContainsAny(line[1:], `*?[\`):
		r.match = func(s string) bool { return strings.HasSuffix(s, line[1:]) }
	default:
		expr, valid := translate(line)
		if !valid {
			return r, false
		}
		re, err := regexp.Compile(expr)
		if err != nil {
			return r, false
		}
		r.match = func(s string) bool { return re.MatchString(bytewise(s)) }
	}
	return r, true
}

// bytewise makes each byte a rune: git matches bytes.
func bytewise(s string) string {
	for i := range len(s) {
		if s[i] >= 0x80 {
			runes := make([]rune, len(s))
			for i := range len(s) {
				runes[i] = rune(s[i])
			}
			return string(runes)
		}
	}
	return s
}

// translate makes a regular expression of a pattern, as wildmatch.c reads it
// with WM_PATHNAME.
func translate(p string) (expr string, ok bool) {
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for i := 0; i < len(p); {
		switch c := p[i]; c {
		case '*':
			n := stars(p[i:])
			i += writeStars(&b, p, i, n)
		case '?':
			b.WriteString(`[^/]`)
			i++
		case '[':
			set, n, ok := class(p[i:])
			if !ok {
				return "", false
			}
			writeSet(&b, set)
			i += n
		case '\\':
			if i+1 == len(p) {
				return "", false
			}
			fmt.Fprintf(&b, `\x{%x}`, p[i+1])
			i += 2
		default:
			fmt.Fprintf(&b, `\x{%x}`, c)
			i++
		}
	}
	b.WriteString(`\z`)
	return b.String(), true
}

func stars(p string) int { return len(p) - len(strings.TrimLeft(p, "*")) }

// writeStars writes n stars at i and returns how much of the pattern that was.
// Two that stand between slashes match these too.
func writeStars(b *strings.Builder, p string, i, n int) int {
	rest := p[i+n:]
	// git compares what comes before the first special byte by itself, so that
	// stars after it stand at a beginning.
	whole := n >= 2 && (i == strings.IndexAny(p, `*?[\`) || p[i-1] == '/')
	switch {
	case whole && rest == "":
		b.WriteString(`.*`)
	case whole && rest[0] == '/':
		b.WriteString(`(?:.*/)?`)
		return n + 1
	default:
		b.WriteString(`[^/]*`)
	}
	return n
}

var posix = map[string]func(c int) bool{
	"alnum": func(c int) bool { return digit(c) || alpha(c) }, "alpha": alpha, "digit": digit,
	"blank": func(c int) bool { return c == ' ' || c == '\t' }, "cntrl": func(c int) bool { return c < ' ' || c == 0x7f },
	"graph": func(c int) bool { return c > ' ' && c < 0x7f }, "print": func(c int) bool { return c >= ' ' && c < 0x7f },
	"lower": func(c int) bool { return c >= 'a' && c <= 'z' }, "upper": func(c int) bool { return c >= 'A' && c <= 'Z' },
	"punct": func(c int) bool { return c > ' ' && c < 0x7f && !digit(c) && !alpha(c) },
	"space": func(c int) bool { return c == ' ' || c >= '\t' && c <= '\r' },
	"xdigit": func(c int) bool {
		return digit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
	},
}

func digit(c int) bool { return c >= '0' && c <= '9' }
func alpha(c int) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// class reads a bracket expression at the start of p, n bytes long.
func class(p string) (set [256]bool, n int, ok bool) {
	i := 1
	negated := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negated {
		i++
	}
	previous := -1 // the start of a range, if a '-' comes
	for first := true; ; first = false {
		switch {
		case i >= len(p):
			return set, 0, false
		case p[i] == ']' && !first:
			for c := range set {
				set[c] = set[c] != negated && c != '/'
			}
			return set, i + 1, true
		case p[i] == '-' && previous >= 0 && i+1 < len(p) && p[i+1] != ']':
			to, size, ok := classByte(p[i+1:])
			if !ok {
				return set, 0, false
			}
			for c := previous; c <= int(to); c++ {
				set[c] = true
			}
			i, previous = i+1+size, -1
		case strings.HasPrefix(p[i:], "[:"):
			name, _, found := strings.Cut(p[i+2:], ":]")
			is := posix[name]
			if !found || is == nil {
				return set, 0, false
			}
			for c := range set {
				set[c] = set[c] || is(c)
			}
			i, previous = i+len(name)+4, -1
		default:
			c, size, ok := classByte(p[i:])
			if !ok {
				return set, 0, false
			}
			set[c] = true
			i, previous = i+size, int(c)
		}
	}
}

func classByte(p string) (c byte, size int, ok bool) {
	if p[0] != '\\' {
		return p[0], 1, true
	}
	if len(p) == 1 {
		return 0, 0, false
	}
	return p[1], 2, true
}

func writeSet(b *strings.Builder, set [256]bool) {
	start := b.Len()
	b.WriteByte('[')
	none := true
	for c, in := range set {
		if in {
			fmt.Fprintf(b, `\x{%x}`, c)
			none = false
		}
	}
	if !none {
		b.WriteByte(']')
		return
	}
	text := b.String()[:start]
	b.Reset()
	b.WriteString(text + `[^\x{0}-\x{10ffff}]`) // matches nothing
}

// ignored tells whether the rules of d and of the directories above ignore its
// entry: the last rule that matches counts, the nearest file's first.
func (d *dir) ignored(name string, isDir bool) bool {
	path := name
	for ; d != nil; d = d.parent {
		for i := len(d.rules) - 1; i >= 0; i-- {
			r := d.rules[i]
			subject := path
			if r.base {
				subject = name
			}
			if (isDir || !r.dirOnly) && r.match(subject) {
				return !r.negated
			}
		}
		path = d.name + "/" + path
	}
	return false
}
