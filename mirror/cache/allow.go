package cache

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Allow decides which upstreams may be asked, and at which IP addresses.
type Allow struct{ patterns []pattern }

// A pattern is HOST[:PORT][/PATH]. In HOST, a leading "*." stands for any
// subdomain and a lone "*" for any host; in PATH, "*" stands for anything.
type pattern struct{ host, path string }

// ParseAllow reads patterns such as "*", "github.com", "*.example.org/team/*",
// "127.0.0.1:3000" and "localhost/srv/git/*", which is this machine's file
// system. None at all is the same as "*".
func ParseAllow(texts []string) (Allow, error) {
	var a Allow
	if len(texts) == 0 {
		texts = []string{"*"}
	}
	for _, text := range texts {
		host, path, _ := strings.Cut(text, "/")
		host = strings.ToLower(host)
		name := strings.TrimPrefix(host, "*.")
		if host != "*" {
			if err := checkHost(name); err != nil {
				return Allow{}, fmt.Errorf("allowed upstream %q: %w; want HOST[:PORT][/PATH], as in *.example.org/team/*", clip(text), err)
			}
		}
		if strings.Contains(path, "..") {
			return Allow{}, fmt.Errorf(`allowed upstream %q: ".." in its path`, clip(text))
		}
		a.patterns = append(a.patterns, pattern{host: host, path: strings.TrimSuffix(path, ".git")})
	}
	return a, nil
}

// A verdict is what the patterns say of an address.
type verdict int

const (
	refused verdict = iota
	public          // by a pattern with a "*" for the host: at public IP addresses alone
	named           // by its very host name: wherever that is
)

// check returns the most that any pattern gives.
func (a Allow) check(addr Address) verdict {
	most := refused
	for _, p := range a.patterns {
		v := named
		switch {
		case p.host == addr.Host:
		case addr.Host == localhost:
			continue // files only where a pattern says localhost
		case p.host == "*":
			v = public
		case strings.HasPrefix(p.host, "*.") && strings.HasSuffix(addr.Host, p.host[1:]):
			v = public
		default:
			continue
		}
		if v > most && (p.path == "" && addr.Host != localhost || glob(p.path, addr.Path)) {
			most = v
		}
	}
	return most
}

// glob matches "*" with anything, slashes too.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	rest, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}

// What no upstream of the public kind has: the registries' special-purpose
// ranges (RFC 6890 and its successors) beyond those that netip knows.
var special = func() (all []netip.Prefix) {
	for _, p := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
	} {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}()

// isPublic tells whether an IP address is one of the public internet.
func isPublic(ip netip.Addr) bool {
	ip = ip.Unmap()
	if !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// mayDial is asked about the very address that a connection is about to be made
// to, after all resolving, so that a name can't lead elsewhere the second time.
// A link-local address (that of cloud metadata) has to be named itself.
func mayDial(v verdict, host, address string) error {
	to, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	ip, err := netip.ParseAddr(to)
	if err != nil {
		return err
	}
	ip = ip.Unmap().WithZone("")
	if isPublic(ip) || v == named && (!ip.IsLinkLocalUnicast() || hostOnly(host) == ip.String()) {
		return nil
	}
	return &RefusedError{What: host, Why: fmt.Sprintf("it is at %s, which is no public address; name the host in mirror.allow_upstream if it may be asked", ip)}
}

// A RefusedError is a rule of the cache's own.
type RefusedError struct{ What, Why string }

func (e *RefusedError) Error() string { return e.What + " is refused: " + e.Why }
