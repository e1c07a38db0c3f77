package saver

import (
	"strings"
	"unicode/utf8"
)

// refused tells whether git refuses an entry of this name, here or when it
// checks what was pushed: what some file system takes for ".git", and a link
// that one takes for ".gitmodules" (fsck.c, is_hfs_dotgit, is_ntfs_dotgit).
func refused(name string, link bool) bool {
	if len(name) > maxName {
		return true
	}
	for part := range strings.SplitSeq(plain(name), `\`) {
		part, _, _ = strings.Cut(part, ":")
		part = strings.TrimRight(part, " .")
		if part == ".git" || part == "git~1" {
			return true
		}
		if link && (part == ".gitmodules" || strings.HasPrefix(part, "gitmod~") || strings.HasPrefix(part, "gi7eb")) {
			return true
		}
	}
	return false
}

// plain is a name in small letters, without what HFS+ overlooks.
func plain(name string) string {
	if !utf8.ValidString(name) {
		return strings.ToLower(strings.ToValidUTF8(name, "?"))
	}
	return strings.ToLower(strings.Map(func(r rune) rune {
		switch {
		case r >= 0x200c && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x206a && r <= 0x206f, r == 0xfeff:
			return -1
		}
		return r
	}, name))
}

// validBranch tells whether a name can be a branch's (git-check-ref-format).
func validBranch(name string) bool {
	if name == "" || name == "@" || len(name) > 1000 || strings.HasSuffix(name, ".") || strings.Contains(name, "..") || strings.Contains(name, "@{") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") || len(part) > 200 {
			return false
		}
	}
	return strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r) }) < 0
}

// validID tells whether s names an object.
func validID(s string) bool {
	if len(s) != 40 || s == strings.Repeat("0", 40) {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}
