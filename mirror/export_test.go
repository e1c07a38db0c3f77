package mirror

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// ReadCommands reads a push's command list: the refs, and exactly what was read.
func ReadCommands(r io.Reader) (refs []string, raw []byte, err error) {
	list, err := readCommands(r)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range list.commands {
		refs = append(refs, c.ref)
	}
	return refs, list.raw, nil
}

// ReadPack reads a pack to its end.
var ReadPack = readPack

// SecretsInPatch searches what git log --patch prints: "path:line" of each find.
func SecretsInPatch(text string) ([]string, error) {
	var out []string
	s := &searcher{found: func(v violation) { out = append(out, fmt.Sprintf("%s:%d", v.path, v.line)) }}
	err := s.read(bufio.NewReaderSize(strings.NewReader(text), 64))
	return out, err
}

// ProtectedInChanges looks at what git log --raw -z prints: the protected paths.
func ProtectedInChanges(text string, paths []string) ([]string, error) {
	i := &inspection{protected: paths}
	err := i.readChanges(bufio.NewReaderSize(strings.NewReader(text), 64), map[string]string{})
	var out []string
	for _, v := range i.found {
		if v.rule == "protected path" {
			out = append(out, v.path)
		}
	}
	return out, err
}

// ReadReport reads a forge's answer to a push.
var ReadReport = readReport
