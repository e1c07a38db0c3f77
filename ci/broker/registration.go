package broker

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// TokenDir is the directory, in that of a broker, with nothing but the file token: a
// container may have it.
const TokenDir = "registration"

// TokenFile is the file with the token by which a runner registers.
func TokenFile(dir string) string { return filepath.Join(dir, TokenDir, "token") }

// Token reads that token, and makes one if there is none.
func Token(dir string) (string, error) {
	file := TokenFile(dir)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return "", err
		}
		// Of two that make one at a time, one wins.
		if err := write(dir, file, []byte(rand.Text()+"\n"), os.Link); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return "", fmt.Errorf("the token by which a runner registers: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if len(token) < 16 {
		return "", fmt.Errorf("%s has no token: remove it, and another one is made", file)
	}
	return token, nil
}

// write writes a file 0600 by way of dir, so that it is there whole or not at all; to puts
// it in its place.
func write(dir, file string, text []byte, to func(from, to string) error) error {
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // a rename has taken it away
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return to(f.Name(), file)
}

// A runner is what is kept of the one that is registered; its UUID is "" for none.
type runner struct {
	Name  string `json:"name"`
	UUID  string `json:"uuid"`
	Token string `json:"token"` // SHA-256 of it, hex
}

func runnerFile(dir string) string { return filepath.Join(dir, "runner.json") }

func readRunner(dir string) (runner, error) {
	var r runner
	text, err := os.ReadFile(runnerFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}

func writeRunner(dir string, r runner) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return write(dir, runnerFile(dir), text, os.Rename)
}

// Registered is the name of the runner that is registered; "" for none.
func Registered(dir string) (string, error) {
	r, err := readRunner(dir)
	return r.Name, err
}

// newRunner makes who a runner is from now on, and its token.
func newRunner(name string) (r runner, token string) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // it never fails
	token = rand.Text()
	return runner{Name: name, UUID: fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]), Token: hashed(token)}, token
}

// is says whether the credentials are the runner's.
func (r runner) is(uuid, token string) bool {
	return r.UUID != "" && same(r.UUID, uuid) && same(r.Token, hashed(token))
}

func hashed(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// same compares two texts in a time that tells nothing of them.
func same(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(hashed(a)), []byte(hashed(b))) == 1
}
