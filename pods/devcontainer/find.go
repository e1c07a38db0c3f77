package devcontainer

import (
	"path"
	"slices"
	"strings"
)

// Candidates are the paths at which a folder of a repository may have its file, the
// first that is there counts (https://containers.dev/implementors/spec/#devcontainerjson).
// The folder is "." for the whole repository. One that is a path of a file is that.
func Candidates(folder string) []string {
	if strings.HasSuffix(folder, ".json") {
		return []string{path.Clean(folder)}
	}
	out := []string{path.Join(folder, ".devcontainer", "devcontainer.json"), path.Join(folder, ".devcontainer.json")}
	if slices.Contains(strings.Split(path.Clean(folder), "/"), ".devcontainer") {
		out = []string{path.Join(folder, "devcontainer.json")} // a choice among several
	}
	return out
}

// Choices is the directory whose folders may have a file each, where none of
// Candidates is there.
func Choices(folder string) string { return path.Join(folder, ".devcontainer") }

// Folder is the one of the repository that a file is for, "." for the whole.
func Folder(file string) string {
	parts := strings.Split(path.Clean(file), "/")
	if i := slices.Index(parts, ".devcontainer"); i >= 0 {
		return path.Join(append([]string{"."}, parts[:i]...)...)
	}
	return path.Dir(path.Clean(file))
}
