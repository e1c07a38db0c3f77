package dockerfile

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Bounds of words: each variable in one may be as long as a value.
const (
	maxVariables = 256
	maxValue     = 32 << 10 // bytes
	maxWords     = 1 << 20  // bytes of all words of a build, with their variables
)

// edits are words that change what a variable holds; by these a short text could become
// any length.
var edits = regexp.MustCompile(`\$\{\w+[#%/]`)

// expander replaces the variables in a word: those of env, and of args below them.
func (b *builder) expander(env []string, args map[string]string) instructions.SingleWordExpander {
	return b.expand(shell.NewLex(b.escape), env, args)
}

// raw is expander for a text, whose quotes are its own.
func (b *builder) raw(env []string, args map[string]string) instructions.SingleWordExpander {
	lex := shell.NewLex('\\')
	lex.SkipProcessQuotes = true
	return b.expand(lex, env, args)
}

func (b *builder) expand(lex *shell.Lex, env []string, args map[string]string) instructions.SingleWordExpander {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(args)) {
		all = append(all, name+"="+args[name])
	}
	vars := shell.EnvsFromSlice(append(all, env...)) // the last one of a name counts
	return func(word string) (string, error) {
		if strings.Count(word, "$") > maxVariables || edits.MatchString(word) {
			return "", fmt.Errorf("%s: at most %d variables, and no ${NAME/…}, ${NAME#…} and ${NAME%%…} are possible here", short(word), maxVariables)
		}
		out, _, err := lex.ProcessWord(word, vars)
		if err == nil && len(out) > maxValue && len(out) > len(word) {
			err = fmt.Errorf("%s: with its variables it has more than %d bytes", short(word), maxValue)
		}
		if b.words += len(out); err == nil && b.words > maxWords {
			err = fmt.Errorf("with their variables all words have more than %d bytes", maxWords)
		}
		return out, err
	}
}

func lookup(env []string, name string) (value string, ok bool) {
	for _, kv := range env {
		if n, v, _ := strings.Cut(kv, "="); n == name {
			value, ok = v, true
		}
	}
	return value, ok
}

func (s *stage) setEnv(name, value string) {
	s.Env = slices.DeleteFunc(s.Env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	s.Env = append(s.Env, name+"="+value)
}

// within is a path in the container.
func (s *stage) within(p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join("/", s.Dir, p)
}

var (
	remote  = regexp.MustCompile(`^(?i:[a-z][a-z0-9+.-]*://|git@|github\.com/)`)
	archive = regexp.MustCompile(`(?i)\.(tar(\.(gz|bz2|xz|zst))?|t(gz|bz2?|xz|zst))$`)
)

// plain refuses an ADD that is more than a COPY.
func plain(c *instructions.AddCommand) error {
	if c.Checksum != "" || c.KeepGitDir != nil || c.Unpack != nil || len(c.ExcludePatterns) > 0 {
		return errors.New("of ADD only what COPY can do is possible here")
	}
	for _, src := range c.SourcePaths {
		if remote.MatchString(src) {
			return fmt.Errorf("ADD of an address (%s) is not possible in a job: fetch it in a RUN, which has the job's network", short(src))
		}
		if archive.MatchString(src) {
			return fmt.Errorf("ADD does not unpack an archive (%s) here: COPY it and unpack it in a RUN", short(src))
		}
	}
	return nil
}

// lines tells what a command prints, by lines that are not too long.
type lines struct {
	say func(string)
	buf []byte
}

const maxLine = 8 << 10 // bytes

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i]
		}
		part = part[:min(len(part), maxLine-len(l.buf))]
		l.buf = append(l.buf, part...)
		p = p[len(part):]
		if len(p) > 0 && p[0] == '\n' {
			p = p[1:]
			l.say(string(l.buf))
			l.buf = l.buf[:0]
		} else if len(l.buf) == maxLine {
			l.flush()
		}
	}
	return n, nil
}

func (l *lines) flush() {
	if len(l.buf) > 0 {
		l.say(string(l.buf))
	}
	l.buf = l.buf[:0]
}
