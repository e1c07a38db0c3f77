package egress

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// Rules say which hosts may be reached. They don't change; the zero value allows
// nothing.
type Rules struct {
	open  bool
	exact map[string]ports // by host, as [host.String] writes it
	under map[string]ports // by what a wildcard has after "*."
}

// ports of a host: the web's (80 for http, 443 for TLS), and those that were
// named.
type ports struct {
	web   bool
	named []uint16
}

// Open is the rule that lets through to every host with a public address.
func Open() Rules { return Rules{open: true} }

// IsOpen tells whether all public hosts are allowed.
func (r Rules) IsOpen() bool { return r.open }

// Parse reads patterns:
//
//	example.com          https (443) and http (80)
//	*.example.com        all names below it, and not itself
//	example.com:8443     this port alone, also of *.example.com
//	93.184.216.34        an address, in its one usual form, if it is a public one
//	preset:go            what an ecosystem needs, see [Presets]
//
// Case and a dot at the end mean nothing. All that is wrong is told at once, as
// [PatternError] values joined.
func Parse(patterns []string) (Rules, error) {
	r := Rules{exact: map[string]ports{}, under: map[string]ports{}}
	var wrong []error
	for _, p := range patterns {
		p = strings.TrimSpace(p)
		name, isPreset := strings.CutPrefix(strings.ToLower(p), "preset:")
		if !isPreset {
			wrong = append(wrong, r.add(p))
			continue
		}
		hosts := Preset(name)
		if hosts == nil {
			wrong = append(wrong, &PatternError{p, "there is no such preset", "the presets are " + strings.Join(Presets(), ", ")})
		}
		for _, h := range hosts {
			wrong = append(wrong, r.add(h))
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return Rules{}, err
	}
	return r, nil
}

// A PatternError is a pattern that [Parse] refuses.
type PatternError struct {
	Pattern string
	Why     string
	Next    string // what to do
}

func (e *PatternError) Error() string {
	return fmt.Sprintf("host pattern %.253q: %s; %s", e.Pattern, e.Why, e.Next)
}

const wantPattern = "write it like example.com, *.example.com or example.com:8443"

func (r *Rules) add(pattern string) error {
	bad := func(why, next string) error { return &PatternError{pattern, why, next} }
	switch {
	case pattern == "":
		return bad("it is empty", wantPattern)
	case pattern == "*":
		return bad("it would allow every host", "name the hosts; to allow all, choose the open network instead")
	case strings.Contains(pattern, "://"):
		return bad("it is a URL", "write the host alone, as in example.com")
	case strings.Contains(pattern, "/"):
		return bad("it has a path, which can't be seen inside of TLS", "write the host alone, as in example.com")
	}
	hostText, portText, hasPort := splitPort(pattern)
	var port uint16
	if hasPort {
		var err error
		if port, err = parsePort(portText); err != nil {
			return bad(err.Error(), wantPattern)
		}
	}
	base, wildcard := strings.CutPrefix(hostText, "*.")
	if strings.Contains(base, "*") {
		return bad("a star stands at the beginning only, for all names below a host", wantPattern)
	}
	h, err := parseHost(base)
	switch {
	case err != nil && wildcard && parentOfAll(base):
		return bad("it would allow all of a public domain", "name the hosts one by one")
	case err != nil:
		return bad(err.Error(), wantPattern)
	case h.name == "" && wildcard:
		return bad("an address has no names below it", wantPattern)
	case h.name == "" && (strings.Trim(base, "[]") != h.ip.String() || !Reachable(h.ip)):
		return bad("it is not the usual form of a public IP address", "write the host's name: names are looked up by the gate, and reach public addresses only")
	case wildcard && parentOfAll(h.name):
		return bad("it would allow all of a public domain, where anybody may have a name", "name the hosts one by one")
	}
	set := r.exact
	if wildcard {
		set = r.under
	}
	p := set[h.String()]
	if !hasPort {
		p.web = true
	} else if !slices.Contains(p.named, port) {
		p.named = append(slices.Clone(p.named), port)
	}
	set[h.String()] = p
	return nil
}

// parentOfAll tells domains below which anybody can have a name (the public
// suffix list, https://publicsuffix.org), such as com, co.uk and github.io.
func parentOfAll(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	suffix, _ := publicsuffix.PublicSuffix(name)
	return name == suffix
}

// Allows tells whether a host, as a client writes it, may be reached at a port:
// 443 and 80 by a rule for the host, others by a rule that names the port. That
// its address must be public as well is not asked here.
func (r Rules) Allows(hostText string, port uint16) bool {
	h, err := parseHost(hostText)
	return err == nil && (r.allow(target{h, port}, true) || r.allow(target{h, port}, false))
}

// allow tells whether a tunnel (CONNECT), or else plain http, may go to t.
func (r Rules) allow(t target, connect bool) bool {
	web := t.port == 443
	if !connect {
		web = t.port == 80
	}
	fits := func(p ports) bool { return web && p.web || slices.Contains(p.named, t.port) }
	if r.open || fits(r.exact[t.host.String()]) {
		return true
	}
	for name := t.host.name; name != ""; {
		_, name, _ = strings.Cut(name, ".")
		if p, ok := r.under[name]; ok && fits(p) {
			return true
		}
	}
	return false
}
