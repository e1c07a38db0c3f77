package ci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Bounds on a workflow of one job.
const (
	maxWorkflow = 1 << 20 // bytes
	maxDepth    = 100
	maxSteps    = 1000
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// parse reads the one document of a workflow. Aliases stay what they are, so that no text
// is larger than it looks.
func parse(workflow []byte) (*yaml.Node, error) {
	if len(workflow) > maxWorkflow {
		return nil, fmt.Errorf("it is larger than %d bytes", maxWorkflow)
	}
	d := yaml.NewDecoder(bytes.NewReader(workflow))
	var doc, second yaml.Node
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	if err := d.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one document")
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("it is no mapping")
	}
	return doc.Content[0], nil
}

// value is what a mapping has under a key, through an alias, nil for nothing.
func value(n *yaml.Node, key string) *yaml.Node {
	if n = target(n); n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return target(n.Content[i+1])
		}
	}
	return nil
}

func target(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// outline is the id of a workflow's one job, the name that the forge lists it by, and the
// names of its steps.
func outline(workflow []byte) (id, name string, steps []string) {
	doc, err := parse(workflow)
	if err != nil {
		return "", "", nil
	}
	jobs := value(doc, "jobs")
	if jobs == nil || jobs.Kind != yaml.MappingNode || len(jobs.Content) < 2 {
		return "", "", nil
	}
	id, name = jobs.Content[0].Value, jobs.Content[0].Value
	if n := value(jobs.Content[1], "name"); n != nil && n.Value != "" {
		name = Clean(n.Value)
	}
	list := value(jobs.Content[1], "steps")
	if list == nil || list.Kind != yaml.SequenceNode {
		return id, name, nil
	}
	for i, s := range list.Content {
		if i == maxSteps {
			break
		}
		steps = append(steps, stepName(s, i))
	}
	return id, name, steps
}

func stepName(s *yaml.Node, i int) string {
	for _, k := range []string{"name", "uses", "run"} {
		v := value(s, k)
		if v == nil || v.Value == "" {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimSpace(v.Value), "\n")
		if k == "run" {
			name = "Run " + name
		}
		if name = Clean(name); len(name) > 255 {
			name = strings.ToValidUTF8(name[:255], "")
		}
		return name
	}
	return fmt.Sprintf("step %d", i+1)
}

// wanted says what a workflow asks for that untrusted jobs don't get: secrets other than
// the forge's own token, or a token that can write. What is not clear counts as wanted.
func wanted(workflow []byte) []string {
	doc, err := parse(workflow)
	if err != nil {
		return []string{"its workflow can't be read: " + err.Error()}
	}
	w := wants{}
	w.node(doc, "", 0)
	return sortedKeys(w)
}

// wants is a set of what is wanted.
type wants map[string]bool

// coreTags are those whose values are what they look like.
var coreTags = map[string]bool{
	"!!str": true, "!!int": true, "!!bool": true, "!!null": true, "!!float": true, "!!map": true, "!!seq": true,
	"!!timestamp": true, "!!merge": true, "": true, "!": true,
}

// node looks at all of n, which is the value of key.
func (w wants) node(n *yaml.Node, key string, depth int) {
	if depth > maxDepth {
		w["what is nested too deep to be read"] = true
		return
	}
	if !coreTags[n.ShortTag()] && n.Kind != yaml.AliasNode {
		w["what is tagged in a way that is not known"] = true
	}
	switch n.Kind {
	case yaml.ScalarNode:
		w.scalar(n.Value, key)
	case yaml.AliasNode:
		// What it stands for is looked at where it is; but not as the value of this key.
		if inIf(key) && n.Alias != nil && n.Alias.Kind == yaml.ScalarNode {
			w.scalar(n.Alias.Value, key)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := target(n.Content[i])
			name := strings.ToLower(strings.TrimSpace(k.Value))
			w.node(n.Content[i], "", depth+1)
			w.node(n.Content[i+1], name, depth+1)
			switch name {
			case "secrets":
				w["secrets"] = true
			case "permissions":
				w.permissions(n.Content[i+1])
			}
		}
	default:
		for _, c := range n.Content {
			w.node(c, key, depth+1)
		}
	}
}

func inIf(key string) bool { return key == "if" }

// permissions are those of a token. A job that is untrusted has one that can read.
func (w wants) permissions(n *yaml.Node) {
	ok := func(n *yaml.Node) bool {
		n = target(n)
		return n.Kind == yaml.ScalarNode && (n.Value == "read" || n.Value == "none")
	}
	n = target(n)
	switch {
	case n.Kind == yaml.ScalarNode && (n.Value == "read-all" || n.ShortTag() == "!!null"):
		return
	case n.Kind == yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			if !ok(n.Content[i]) {
				w["permission to write ("+Clean(target(n.Content[i-1]).Value)+")"] = true
			}
		}
	default:
		w["permission to write"] = true
	}
}

// scalar looks for expressions in a text: what is in ${{ }}, and all of an if.
func (w wants) scalar(s, key string) {
	if inIf(key) {
		w.expression(s)
	}
	for {
		_, rest, found := strings.Cut(s, "${{")
		if !found {
			return
		}
		n := w.expression(rest)
		s = rest[n:]
	}
}

// expression looks at the expression that s begins with, and returns its length. It ends
// at }} outside of a string.
func (w wants) expression(s string) int {
	before := byte(0) // the last character that is no space
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '\'':
			end := stringEnd(s, i)
			if strings.Contains(strings.ToLower(s[i:end]), "secrets") {
				w["secrets"] = true // in a text that may become an expression
			}
			i = end
		case strings.HasPrefix(s[i:], "}}"):
			return i + 2
		case letter(c):
			end := i
			for end < len(s) && (letter(s[end]) || s[end] >= '0' && s[end] <= '9' || s[end] == '-') {
				end++
			}
			if strings.EqualFold(s[i:end], "secrets") && before != '.' {
				w.secret(s[end:])
			}
			i = end
		default:
			i++
		}
		if c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			before = c
		}
	}
	return len(s)
}

func letter(c byte) bool { return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// stringEnd is where the string that begins at i ends; two quotes are one in it.
func stringEnd(s string, i int) int {
	for i++; i < len(s); i++ {
		if s[i] != '\'' {
			continue
		}
		if i+1 < len(s) && s[i+1] == '\'' {
			i++
			continue
		}
		return i + 1
	}
	return len(s)
}

// secret says which secret is meant by what follows the word, if it is not the forge's own
// token, and all of them if that is not clear.
func (w wants) secret(rest string) {
	rest = strings.TrimLeft(rest, " \t\r\n")
	name := ""
	if r, is := strings.CutPrefix(rest, "."); is {
		r = strings.TrimLeft(r, " \t\r\n")
		end := strings.IndexFunc(r, func(c rune) bool { return c > 0x7f || !letter(byte(c)) && (c < '0' || c > '9') && c != '-' })
		if end < 0 {
			end = len(r)
		}
		name = r[:end]
	} else if r, is := strings.CutPrefix(rest, "["); is {
		if inner, _, closed := strings.Cut(r, "]"); closed {
			inner = strings.Trim(inner, " \t\r\n")
			if len(inner) > 2 && inner[0] == '\'' && inner[len(inner)-1] == '\'' {
				name = inner[1 : len(inner)-1]
			}
		}
	}
	switch {
	case isOwnToken(name):
	case name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "":
		w["secrets"] = true
	default:
		w["secrets."+strings.ToUpper(name)] = true
	}
}
