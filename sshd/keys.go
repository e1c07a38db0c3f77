package sshd

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// Keys tell who is let in. Find is called for each key that a client shows, and again
// once it has proven that it has it; concurrently.
type Keys interface {
	Find(conn gossh.ConnMetadata, key gossh.PublicKey) (Rule, error)
}

// A Rule is what the owner of a key may do: its line of authorized_keys (sshd(8)).
type Rule struct {
	Comment   string
	Command   string // that is run whatever the client wants, "" for none
	NoPTY     bool
	NoForward bool // of ports and sockets
	NoAgent   bool
	Env       []string // "NAME=value"

	key        gossh.PublicKey
	authority  bool
	principals []string
	from       []string
	expires    time.Time
}

// KeysFile lets in whom the file at that path names, in the form of authorized_keys.
// It is read for each login, so that a change counts at once.
type KeysFile string

const maxKeysFile = 1 << 20

// Find implements [Keys].
func (path KeysFile) Find(conn gossh.ConnMetadata, key gossh.PublicKey) (Rule, error) {
	f, err := os.Open(string(path))
	if err != nil {
		return Rule{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Rule{}, err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return Rule{}, fmt.Errorf("%s may be written by others; run: chmod go-w %s", path, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeysFile+1))
	if err != nil {
		return Rule{}, err
	}
	if len(text) > maxKeysFile {
		return Rule{}, fmt.Errorf("%s has more than %d bytes", path, maxKeysFile)
	}
	rules, _ := ParseKeys(text)
	return rules.Find(conn, key)
}

// Rules are lines of authorized_keys.
type Rules []Rule

// ParseKeys reads authorized_keys. Lines that it does not understand, or with an option
// that it does not have, let nobody in; err names them.
func ParseKeys(text []byte) (rules Rules, err error) {
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, comment, options, _, bad := gossh.ParseAuthorizedKey(line)
		rule := Rule{key: key, Comment: comment}
		for _, o := range options {
			bad = errors.Join(bad, rule.option(o))
		}
		if bad != nil {
			err = errors.Join(err, fmt.Errorf("line %d: %w", n, bad))
			continue
		}
		rules = append(rules, rule)
	}
	return rules, err
}

func (r *Rule) option(text string) error {
	name, value, _ := strings.Cut(text, "=")
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = strings.ReplaceAll(value[1:len(value)-1], `\"`, `"`)
	}
	switch strings.ToLower(name) {
	case "restrict":
		r.NoPTY, r.NoForward, r.NoAgent = true, true, true
	case "no-pty":
		r.NoPTY = true
	case "pty":
		r.NoPTY = false
	case "no-port-forwarding":
		r.NoForward = true
	case "port-forwarding":
		r.NoForward = false
	case "no-agent-forwarding":
		r.NoAgent = true
	case "agent-forwarding":
		r.NoAgent = false
	case "no-x11-forwarding", "x11-forwarding", "no-user-rc", "user-rc":
		// there is neither
	case "command":
		r.Command = value
	case "environment":
		r.Env = append(r.Env, value)
	case "cert-authority":
		r.authority = true
	case "principals":
		r.principals = strings.Split(value, ",")
	case "from":
		r.from = strings.Split(value, ",")
	case "expiry-time":
		return r.expiry(value)
	default:
		return fmt.Errorf("the option %s is not one that is known here", name)
	}
	return nil
}

func (r *Rule) expiry(value string) (err error) {
	place := time.Local
	if v, ok := strings.CutSuffix(value, "Z"); ok {
		value, place = v, time.UTC
	}
	for _, form := range []string{"20060102", "200601021504", "20060102150405"} {
		if len(value) == len(form) {
			r.expires, err = time.ParseInLocation(form, value, place)
			return err
		}
	}
	return fmt.Errorf("%q is no time; one is 20260131 or 202601311200", value)
}

// Find implements [Keys].
func (rules Rules) Find(conn gossh.ConnMetadata, key gossh.PublicKey) (Rule, error) {
	err := errors.New("no line has the key")
	for _, r := range rules {
		found, why := r.matches(conn, key)
		if !found {
			continue
		}
		if why == nil {
			why = r.lets(conn)
		}
		if why == nil {
			return r.with(key), nil
		}
		err = why
	}
	return Rule{}, err
}

func same(a, b gossh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// matches tells whether the line is about that key; why it does not do, if so.
func (r Rule) matches(conn gossh.ConnMetadata, key gossh.PublicKey) (found bool, why error) {
	cert, is := key.(*gossh.Certificate)
	if is != r.authority {
		return false, nil
	}
	if !is {
		return same(r.key, key), nil
	}
	if !same(r.key, cert.SignatureKey) {
		return false, nil
	}
	if cert.CertType != gossh.UserCert {
		return true, errors.New("the certificate is not one of a user")
	}
	check := gossh.CertChecker{
		SupportedCriticalOptions: []string{"force-command", "source-address"},
		IsUserAuthority:          func(k gossh.PublicKey) bool { return same(k, r.key) },
	}
	principal := conn.User()
	if r.principals != nil {
		i := slices.IndexFunc(cert.ValidPrincipals, func(p string) bool { return slices.Contains(r.principals, p) })
		if i < 0 {
			return true, errors.New("the certificate is for none of the line's principals")
		}
		principal = cert.ValidPrincipals[i]
	} else if len(cert.ValidPrincipals) == 0 {
		return true, errors.New("the certificate names no principals")
	}
	if err := check.CheckCert(principal, cert); err != nil {
		return true, err
	}
	return true, sources(conn, cert.CriticalOptions["source-address"])
}

// with is what a certificate adds to its authority's line.
func (r Rule) with(key gossh.PublicKey) Rule {
	cert, is := key.(*gossh.Certificate)
	if !is {
		return r
	}
	if forced := cert.CriticalOptions["force-command"]; forced != "" {
		r.Command = forced
	}
	_, pty := cert.Extensions["permit-pty"]
	_, forward := cert.Extensions["permit-port-forwarding"]
	_, agent := cert.Extensions["permit-agent-forwarding"]
	r.NoPTY, r.NoForward, r.NoAgent = r.NoPTY || !pty, r.NoForward || !forward, r.NoAgent || !agent
	if r.Comment == "" {
		r.Comment = cert.KeyId
	}
	return r
}

// lets tells why the line lets nobody in now, or from there.
func (r Rule) lets(conn gossh.ConnMetadata) error {
	if !r.expires.IsZero() && time.Now().After(r.expires) {
		return errors.New("the line's time is over (expiry-time)")
	}
	if r.from != nil && !from(conn, r.from) {
		return errors.New("the line is for other addresses (from)")
	}
	return nil
}

func sources(conn gossh.ConnMetadata, list string) error {
	if list != "" && !from(conn, strings.Split(list, ",")) {
		return errors.New("the certificate is for other addresses (source-address)")
	}
	return nil
}

// from matches an address with a list of patterns as in ssh_config(5), of addresses
// alone: names are not looked up.
func from(conn gossh.ConnMetadata, list []string) (ok bool) {
	ip := net.ParseIP(host(conn.RemoteAddr()))
	for _, pattern := range list {
		p, not := strings.CutPrefix(strings.TrimSpace(pattern), "!")
		var hit bool
		if _, network, err := net.ParseCIDR(p); err == nil {
			hit = ip != nil && network.Contains(ip)
		} else {
			hit = wildcard(p, ip.String())
		}
		if hit && not {
			return false
		}
		ok = ok || hit
	}
	return ok
}

// wildcard matches s with a pattern of * and ?.
func wildcard(pattern, s string) bool {
	for pattern != "" {
		switch {
		case pattern[0] == '*':
			for i := 0; i <= len(s); i++ {
				if wildcard(pattern[1:], s[i:]) {
					return true
				}
			}
			return false
		case s == "" || pattern[0] != '?' && pattern[0] != s[0]:
			return false
		}
		pattern, s = pattern[1:], s[1:]
	}
	return s == ""
}

// newHostKey makes the key, so that two that do so at once agree on one.
func newHostKey(path string) ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := gossh.MarshalPrivateKey(private, "devaipod")
	if err != nil {
		return nil, err
	}
	half, err := os.CreateTemp(filepath.Dir(path), ".host-key-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(half.Name()) }()
	_, err = half.Write(pem.EncodeToMemory(block))
	if err := errors.Join(err, half.Sync(), half.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(half.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return os.ReadFile(path)
}
