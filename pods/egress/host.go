package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// A host is a name or an IP address, in the one form that is compared.
type host struct {
	name string     // "" for an address
	ip   netip.Addr // the zero Addr for a name
}

func (h host) String() string {
	if h.name != "" {
		return h.name
	}
	return h.ip.String()
}

// parseHost reads a host name (RFC 1123, 2.1; with underscores, which some
// have), or an IP address without a zone, with or without brackets.
func parseHost(text string) (host, error) {
	bare := strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	if ip, err := netip.ParseAddr(bare); err == nil {
		if ip.Zone() != "" {
			return host{}, errors.New("it is an address with a zone, which means nothing elsewhere")
		}
		return host{ip: ip.Unmap()}, nil
	}
	name := strings.ToLower(strings.TrimSuffix(text, "."))
	if len(name) > 253 {
		return host{}, errors.New("it is longer than the 253 bytes of a host name")
	}
	if why := notASCII(name); why != nil {
		return host{}, why
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if !isLabel(label) {
			return host{}, errors.New("it is not a host name: parts of 1 to 63 letters, digits and hyphens, with dots between them")
		}
	}
	// Resolvers take such names for numbers (inet_aton(3)).
	last := labels[len(labels)-1]
	if last[0] >= '0' && last[0] <= '9' {
		return host{}, errors.New("it looks like an IP address and is none in the usual form")
	}
	if len(labels) == 1 {
		return host{}, errors.New("it has no dot: names of a local network are not reached from a pod")
	}
	return host{name: name}, nil
}

func notASCII(name string) error {
	for _, c := range []byte(name) {
		if c < 0x80 {
			continue
		}
		if ascii, err := idna.Lookup.ToASCII(name); err == nil {
			return fmt.Errorf("it is not in ASCII; as a host name it is written %s (RFC 5891)", ascii)
		}
		return errors.New("it is not in ASCII; write it in punycode, xn--… (RFC 5891)")
	}
	return nil
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || text[0] == '0' {
		return 0, errors.New("the port is no number from 1 to 65535")
	}
	return uint16(n), nil
}

// splitPort takes the port off the end, if there is one. An IPv6 address with a
// port has brackets (RFC 3986, 3.2.2).
func splitPort(text string) (hostText, port string, found bool) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || strings.HasSuffix(text, "]") || strings.IndexByte(text, ':') != i && text[0] != '[' {
		return text, "", false
	}
	return text[:i], text[i+1:], true
}

// A target is where a request wants to go.
type target struct {
	host host
	port uint16
}

func (t target) String() string {
	if t.host.name != "" {
		return t.host.name + ":" + strconv.Itoa(int(t.port))
	}
	return netip.AddrPortFrom(t.host.ip, t.port).String()
}

// rule is the pattern that allows t, as a person writes it.
func (t target) rule(connect bool) string {
	if t.port == 443 || t.port == 80 && !connect {
		return t.host.String()
	}
	return t.String()
}

// parseTarget reads the authority form HOST:PORT (RFC 9112, 3.2.3).
func parseTarget(text string) (target, error) {
	hostText, portText, found := splitPort(text)
	if !found {
		return target{}, errors.New("it is not HOST:PORT")
	}
	port, err := parsePort(portText)
	if err != nil {
		return target{}, err
	}
	h, err := parseHost(hostText)
	return target{h, port}, err
}

// printable bounds what an agent wrote: 253 bytes of ASCII without spaces.
func printable(s string) string {
	b := []byte(s[:min(len(s), 253)])
	for i, c := range b {
		if c <= ' ' || c >= 0x7f {
			b[i] = '?'
		}
	}
	return string(b)
}
