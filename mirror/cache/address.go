package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// An Address names a repository by where its upstream is.
type Address struct {
	Host string // lower case, with a port if it has one: "github.com", "127.0.0.1:3000", "[::1]:80"
	Path string // without a slash at either end and without ".git": "owner/repo"
}

// localhost without a port is this machine's file system.
const localhost = "localhost"

// Bounds on an address.
const (
	maxAddress  = 1000 // bytes
	maxSegments = 20
)

// An AddressError tells why a text is no address.
type AddressError struct{ Text, Why string }

func (e *AddressError) Error() string {
	return fmt.Sprintf("%q names no repository: %s; want HOST/PATH, as in github.com/owner/repo", clip(e.Text), e.Why)
}

// ParseAddress reads HOST[:PORT]/PATH[.git]. What is no plain name is refused
// here, once: everything that is made of an address (a directory, a URL, an
// argument of git) relies on it.
func ParseAddress(text string) (Address, error) {
	no := func(why string) (Address, error) { return Address{}, &AddressError{text, why} }
	if len(text) > maxAddress {
		return no(fmt.Sprintf("it is longer than %d bytes", maxAddress))
	}
	host, path, ok := strings.Cut(text, "/")
	if !ok {
		return no("there is no path")
	}
	host = strings.ToLower(host)
	if err := checkHost(host); err != nil {
		return no(err.Error())
	}
	path = strings.TrimSuffix(path, ".git")
	segments := strings.Split(path, "/")
	if len(segments) > maxSegments {
		return no(fmt.Sprintf("its path has more than %d parts", maxSegments))
	}
	for _, s := range segments {
		if err := checkSegment(s); err != nil {
			return no(err.Error())
		}
	}
	return Address{Host: host, Path: path}, nil
}

var label = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?$`)

// number is the last part of what a URL takes for an IPv4 address
// (https://url.spec.whatwg.org/#ends-in-a-number-checker).
var number = regexp.MustCompile(`^([0-9]*|0x[0-9a-f]*)$`)

// checkHost takes a name or an IP address, each perhaps with a port.
func checkHost(host string) error {
	name := host
	if h, port, err := net.SplitHostPort(host); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return fmt.Errorf("%q is no port", clip(port))
		}
		name = h
	} else if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		name = host[1 : len(host)-1]
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		if ip.Zone() != "" || ip.Is4In6() || ip.Is6() != strings.HasPrefix(host, "[") || ip.String() != name {
			return fmt.Errorf("write the address as %s", ip.Unmap().WithZone(""))
		}
		return nil
	}
	if strings.HasPrefix(host, "[") {
		return errors.New("its host has brackets around what is no IPv6 address")
	}
	labels := strings.Split(name, ".")
	if len(name) > 253 || number.MatchString(labels[len(labels)-1]) {
		return errors.New("its host is no name") // or a number that some read as an IP address
	}
	for _, l := range labels {
		if len(l) > 63 || !label.MatchString(l) {
			return errors.New("its host is no name")
		}
	}
	return nil
}

// checkSegment takes one name between slashes.
func checkSegment(s string) error {
	switch {
	case s == "":
		return errors.New("a part of its path is empty")
	case s[0] == '.' && strings.Trim(s, ".") == "":
		return errors.New("its path has dots for a part")
	case s[0] == '-':
		return errors.New("a part of its path begins with a dash")
	case strings.HasSuffix(s, ".git"):
		return errors.New(`there is more after ".git"`)
	case !utf8.ValidString(s):
		return errors.New("its path is not UTF-8")
	}
	for _, r := range s {
		if !unicode.In(r, unicode.L, unicode.Nd, unicode.M) && !strings.ContainsRune("._-+~@=, ", r) {
			return fmt.Errorf("its path has %q in it", r)
		}
	}
	if strings.TrimSpace(s) != s {
		return errors.New("a part of its path begins or ends with a space")
	}
	return nil
}

func (a Address) String() string { return a.Host + "/" + a.Path + ".git" }

// dir is the name of the address's directory: one that a person recognises,
// and that no other address has on any file system.
func (a Address) dir() string {
	sum := sha256.Sum256([]byte(a.String()))
	plain := strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '.') {
			return unicode.ToLower(r)
		}
		return '-'
	}, a.Host+"-"+a.Path)
	if len(plain) > 80 {
		plain = plain[len(plain)-80:]
	}
	return plain + "-" + hex.EncodeToString(sum[:8])
}

// hostOnly is the host without its port, and without brackets.
func hostOnly(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

// clip keeps hostile text short.
func clip(s string) string {
	const most = 120
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
