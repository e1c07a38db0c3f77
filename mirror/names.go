package mirror

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// reserved are names that Windows takes for devices, whatever follows a dot
// (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
var reserved = regexp.MustCompile(`(?i)^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?$`)

// tricky tells why a path or branch name is one that could be taken for
// another, or can't be written everywhere; "" for a plain one.
func tricky(name string) string {
	if !utf8.ValidString(name) {
		return "it is not UTF-8"
	}
	for _, r := range name {
		switch {
		case unicode.In(r, unicode.Cc):
			return fmt.Sprintf("it has the control character %U in it", r)
		case unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) || r == '\u034f' || r == '\u115f' || r == '\u1160' || r == '\u3164' || r == '\uffa0':
			return fmt.Sprintf("it has the invisible character %U in it", r)
		case strings.ContainsRune(`\:*?"<>|`, r):
			return fmt.Sprintf("it has %q in it, which is no part of a name everywhere", r)
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return fmt.Sprintf("it has %q for a part", part)
		case strings.TrimRight(part, ". ") != part:
			return "a part of it ends with a dot or a space"
		case strings.EqualFold(part, ".git") || strings.EqualFold(part, "git~1"):
			return "it has .git for a part"
		case reserved.MatchString(part):
			return fmt.Sprintf("%q is the name of a device on Windows", part)
		}
	}
	return ""
}

// fold makes names equal that a file system may take for the same.
func fold(name string) string { return strings.ToLower(strings.ToUpper(name)) }

// protected are the paths that an agent must not change: a directory where they
// end with a slash, else a file.
type protected []string

// match tells whether a change of path, to a file of that mode, is one of a
// protected path: of what is below it too, and of what would take its place.
func (p protected) match(path, mode string) bool {
	path = fold(path)
	for _, pattern := range p {
		pattern = fold(pattern)
		dir, isDir := strings.CutSuffix(pattern, "/")
		switch {
		case path == dir, isDir && strings.HasPrefix(path, pattern):
			return true
		case mode != "100644" && mode != "100755" && mode != "000000" && strings.HasPrefix(dir, path+"/"):
			return true // a link, or a submodule, where one of its directories is
		}
	}
	return false
}
