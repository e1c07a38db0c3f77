package devcontainer

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"
)

// MaxSize bounds a file, in bytes.
const MaxSize = 64 << 10

// Other bounds.
const (
	maxDepth   = 20
	maxValues  = 4000
	maxString  = 16 << 10 // bytes
	maxList    = 100
	maxErrors  = 10
	maxUnheard = 50
)

// A reader takes a file's values apart. The first mistakes are kept; what comes of
// a value that is wrong is not used then.
type reader struct {
	text   []byte
	place  Place
	c      *Config
	folder string // of the workspace, in the container
	// mounted is what the file takes for the directory of the clone.
	mounted string
	errs    []error
	top     *hujson.Object

	remoteUser string
}

// parse checks what holds for all values.
func (r *reader) parse() error {
	if len(r.text) > MaxSize+1 {
		return fmt.Errorf("it is %d bytes long; want at most %d", len(r.text)-1, MaxSize)
	}
	if depth(r.text) > maxDepth {
		return fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	v, err := hujson.Parse(r.text)
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "hujson: "))
	}
	n := 0
	for range v.All() {
		n++
	}
	if n > maxValues {
		return fmt.Errorf("it has %d values; want at most %d", n, maxValues)
	}
	top, ok := v.Value.(*hujson.Object)
	if !ok {
		return errors.New("want an object, { … }")
	}
	r.check(v)
	if len(r.errs) > 0 {
		return errors.Join(r.errs...)
	}
	r.top = top
	return nil
}

// depth is how deep brackets are nested, counted too high where they are in
// comments.
func depth(text []byte) int {
	deepest, now, quoted := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted && c == '\n': // no string goes on there: it was in a comment
			quoted = false
		case quoted:
		case c == '{' || c == '[':
			now++
			deepest = max(deepest, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return deepest
}

// check refuses names that are there twice, and strings that no command line or
// environment can have.
func (r *reader) check(v hujson.Value) {
	switch x := v.Value.(type) {
	case hujson.Literal:
		if x.Kind() != '"' {
			return
		}
		if s := x.String(); len(s) > maxString {
			r.fail(v, "", "a text of %d bytes; want at most %d", len(s), maxString)
		} else if strings.ContainsRune(s, 0) {
			r.fail(v, "", "a text with the character 0")
		}
	case *hujson.Array:
		for _, e := range x.Elements {
			r.check(e)
		}
	case *hujson.Object:
		seen := map[string]bool{}
		for _, m := range x.Members {
			r.check(m.Name)
			key := m.Name.Value.(hujson.Literal).String()
			if seen[key] {
				r.fail(m.Name, key, "it is there twice")
			}
			seen[key] = true
			r.check(m.Value)
		}
	}
}

// fail notes a mistake.
func (r *reader) fail(at hujson.Value, key, format string, args ...any) {
	if len(r.errs) >= maxErrors {
		return
	}
	line := 1 + bytes.Count(r.text[:at.StartOffset], []byte("\n"))
	what := fmt.Sprintf(format, args...)
	if key != "" {
		what = shown(key) + ": " + what
	}
	r.errs = append(r.errs, fmt.Errorf("line %d: %s", line, what))
}

// unsupported notes what does not hold, once.
func (r *reader) unsupported(key, format string, args ...any) {
	key = shown(key) + ": "
	if slices.ContainsFunc(r.c.Unsupported, func(s string) bool { return strings.HasPrefix(s, key) }) {
		return
	}
	switch n := len(r.c.Unsupported); {
	case n == maxUnheard:
		r.c.Unsupported = append(r.c.Unsupported, "and more")
	case n < maxUnheard:
		r.c.Unsupported = append(r.c.Unsupported, key+fmt.Sprintf(format, args...))
	}
}

// shown is a name of the file's on one line that is not too long.
func shown(s string) string {
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	if q := strconv.Quote(s); q[1:len(q)-1] != s {
		return q
	}
	return s
}

// members are an object's, in the file's order.
func (r *reader) members(v hujson.Value, key string) []member {
	o, ok := v.Value.(*hujson.Object)
	if !ok {
		r.fail(v, key, "want an object, { … }")
		return nil
	}
	return membersOf(o)
}

type member struct {
	key   string
	name  hujson.Value
	value hujson.Value
}

func membersOf(o *hujson.Object) []member {
	var out []member
	for _, m := range o.Members {
		out = append(out, member{m.Name.Value.(hujson.Literal).String(), m.Name, m.Value})
	}
	return out
}

func (r *reader) list(v hujson.Value, key string) []hujson.Value {
	a, ok := v.Value.(*hujson.Array)
	switch {
	case !ok:
		r.fail(v, key, "want a list, [ … ]")
		return nil
	case len(a.Elements) > maxList:
		r.fail(v, key, "it has %d entries; want at most %d", len(a.Elements), maxList)
		return nil
	}
	return a.Elements
}

func kind(v hujson.Value) byte { return byte(v.Value.Kind()) }

// raw is a string as it is written.
func (r *reader) raw(v hujson.Value, key string) string {
	if kind(v) != '"' {
		r.fail(v, key, "want a text, \"…\"")
		return ""
	}
	return v.Value.(hujson.Literal).String()
}

// str is a string with its variables replaced.
func (r *reader) str(v hujson.Value, key string) string { return r.vars(r.raw(v, key)) }

func (r *reader) strs(v hujson.Value, key string) []string {
	var out []string
	for _, e := range r.list(v, key) {
		out = append(out, r.str(e, key))
	}
	return out
}

func (r *reader) boolean(v hujson.Value, key string) bool {
	if k := kind(v); k != 't' && k != 'f' {
		r.fail(v, key, "want true or false")
		return false
	}
	return v.Value.(hujson.Literal).Bool()
}

// integer is one of at least 1 and at most high.
func (r *reader) integer(v hujson.Value, key string, high int64) int64 {
	n := math.NaN()
	if kind(v) == '0' {
		n = v.Value.(hujson.Literal).Float()
	}
	if n != math.Trunc(n) || n < 1 || n > float64(high) {
		r.fail(v, key, "want a whole number from 1 to %d", high)
		return 1
	}
	return int64(n)
}

func (r *reader) oneOf(v hujson.Value, key string, allowed ...string) string {
	s := r.raw(v, key)
	if !slices.Contains(allowed, s) {
		r.fail(v, key, "want one of %s", strings.Join(allowed, ", "))
		return ""
	}
	return s
}
