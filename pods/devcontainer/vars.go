package devcontainer

import (
	"crypto/sha256"
	"encoding/base32"
	"path"
	"regexp"
	"strings"
)

// variable is ${NAME}, or ${KIND:NAME:DEFAULT}. It must not be taken for one of the
// shell's, such as ${env:-x}.
var variable = regexp.MustCompile(`\$\{(?:(localWorkspaceFolder|containerWorkspaceFolder|localWorkspaceFolderBasename|containerWorkspaceFolderBasename|devcontainerId)|(localEnv|env|containerEnv):([A-Za-z_][A-Za-z0-9_]*)(?::([^{}]*))?)\}`)

// vars replaces the variables that are known here.
func (r *reader) vars(s string) string {
	return variable.ReplaceAllStringFunc(s, func(whole string) string {
		m := variable.FindStringSubmatch(whole)
		switch m[1] + m[2] {
		case "localEnv", "env":
			r.unsupported("${"+m[2]+":"+m[3]+"}", "the environment of the service's machine is not for pods; its default counts, or nothing")
			return m[4]
		case "localWorkspaceFolder", "containerWorkspaceFolder":
			return r.folder
		case "localWorkspaceFolderBasename":
			return r.basename()
		case "containerWorkspaceFolderBasename":
			return path.Base(r.folder)
		case "devcontainerId":
			return r.place.id()
		}
		return whole
	})
}

// basename is what the folder that somebody would open is called.
func (r *reader) basename() string {
	if folder := Folder(r.place.File); folder != "." {
		return path.Base(folder)
	}
	return r.place.Repo
}

// id is 52 small letters and digits.
func (p Place) id() string {
	sum := sha256.Sum256([]byte(p.ID))
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))
}

// Expand replaces ${containerEnv:NAME} and ${containerEnv:NAME:DEFAULT} in s by what
// getenv tells of NAME; the default counts where that is nothing.
func Expand(s string, getenv func(string) string) string {
	return variable.ReplaceAllStringFunc(s, func(whole string) string {
		m := variable.FindStringSubmatch(whole)
		if m[2] != "containerEnv" {
			return whole
		}
		if v := getenv(m[3]); v != "" {
			return v
		}
		return m[4]
	})
}

// wantsContainer tells whether s has a variable that only the container knows.
func wantsContainer(s string) bool {
	for _, m := range variable.FindAllStringSubmatch(s, -1) {
		if m[2] == "containerEnv" {
			return true
		}
	}
	return false
}
