// Package secret keeps what pods' gates put into requests in place of their
// agents, who never have it: the model's key, and keys for other hosts. Podman's
// secrets would not do: podman gives no value back, and a container keeps the
// one that it started with.
package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A Secret has a name, and a value that no list shows. One with a host goes into
// requests to that host, as a header.
type Secret struct {
	Name   string   `json:"name"`
	Host   string   `json:"host,omitempty"`
	Header string   `json:"header,omitempty"` // "NAME: VALUE", with {} where the value goes
	Repos  []string `json:"repos,omitempty"`  // owner/name; none for every repository

	Updated time.Time `json:"updated"`
}

// DefaultHeader is what most hosts want (RFC 6750).
const DefaultHeader = "Authorization: Bearer {}"

// kept is a secret's file.
type kept struct {
	Secret
	Value string `json:"value"`
}

// A Store is a directory with a file of mode 0600 for each secret. What is in a
// file was written at once: a kill leaves the old value or the new.
type Store struct{ Dir string }

var name = regexp.MustCompile(`^[a-z][a-z0-9-]{0,40}$`)

// ErrName says what names may be.
var ErrName = errors.New("want small letters, digits and dashes, a letter first")

// CheckName is an error for what is no name.
func CheckName(s string) error {
	if !name.MatchString(s) {
		return fmt.Errorf("secret name %q: %w", s, ErrName)
	}
	return nil
}

func (s Store) file(name string) string { return filepath.Join(s.Dir, name+".json") }

// Put stores a secret, in place of the one that has its name.
func (s Store) Put(sec Secret, value string) error {
	if err := CheckName(sec.Name); err != nil {
		return err
	}
	if sec.Host != "" {
		if sec.Header == "" {
			sec.Header = DefaultHeader
		}
		if _, _, err := sec.header(value); err != nil {
			return err
		}
	} else if sec.Header != "" || len(sec.Repos) > 0 {
		return fmt.Errorf("secret %s: a header and repositories are for one that has a host", sec.Name)
	}
	sec.Updated = time.Now().UTC().Truncate(time.Second)
	text, err := json.Marshal(kept{sec, value})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	return podfile.Replace(s.file(sec.Name), text)
}

// header is what goes into requests.
func (sec Secret) header(value string) (name, text string, err error) {
	name, text, ok := strings.Cut(sec.Header, ":")
	if !ok || !strings.Contains(text, "{}") || !httpguts.ValidHeaderFieldName(name) {
		return "", "", fmt.Errorf("secret %s: the header %q: want NAME: VALUE, with {} where the secret goes", sec.Name, sec.Header)
	}
	text = strings.TrimSpace(strings.ReplaceAll(text, "{}", value))
	if !httpguts.ValidHeaderFieldValue(text) {
		return "", "", fmt.Errorf("secret %s: its value can't be in a header: it has a character such as the end of a line", sec.Name)
	}
	return http.CanonicalHeaderKey(name), text, nil
}

// Value is a secret's; ok is false when there is none of that name.
func (s Store) Value(name string) (value string, ok bool, err error) {
	if err := CheckName(name); err != nil {
		return "", false, err
	}
	k, err := read(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	return k.Value, err == nil, err
}

func read(file string) (kept, error) {
	var k kept
	text, err := os.ReadFile(file)
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal(text, &k); err != nil {
		return k, fmt.Errorf("reading the secret in %s: %w; set it again", file, err)
	}
	return k, nil
}

// all reads every secret, by name.
func (s Store) all() ([]kept, error) {
	files, err := filepath.Glob(s.file("*"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var out []kept
	for _, file := range files {
		k, err := read(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	return out, nil
}

// List is all secrets by name, without their values.
func (s Store) List() ([]Secret, error) {
	found, err := s.all()
	out := []Secret{}
	for _, k := range found {
		out = append(out, k.Secret)
	}
	return out, err
}

// For is what the gate of a repository's pod puts into requests, and where.
func (s Store) For(repo string) ([]podfile.Injection, error) {
	found, err := s.all()
	if err != nil {
		return nil, err
	}
	var out []podfile.Injection
	for _, k := range found {
		if k.Host == "" || len(k.Repos) > 0 && !slices.ContainsFunc(k.Repos, func(r string) bool { return strings.EqualFold(r, repo) }) {
			continue
		}
		name, text, err := k.header(k.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, podfile.Injection{Host: k.Host, Header: name, Value: text, Secret: k.Value})
	}
	return out, nil
}

// Remove removes a secret; it is an error when there is none.
func (s Store) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	err := os.Remove(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no secret %s (devaipod secret list)", name)
	}
	return err
}
