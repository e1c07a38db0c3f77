package egress_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/egress"
)

func mustParse(t testing.TB, patterns ...string) egress.Rules {
	t.Helper()
	r, err := egress.Parse(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPatternsAllow(t *testing.T) {
	for name, tt := range map[string]struct {
		pattern       string
		tunnel, plain string // space-separated, all allowed
		not           string // neither by CONNECT nor plainly
	}{
		"a host":             {"example.com", "example.com:443 EXAMPLE.com.:443", "example.com:80", "example.com:8443 example.com:22 a.example.com:443 xexample.com:443 example.com.evil.org:443 example.org:443"},
		"all below a host":   {"*.example.com", "a.example.com:443 a.b.example.com:443", "a.example.com:80", "example.com:443 aexample.com:443 example.com:80"},
		"one port":           {"example.com:8443", "example.com:8443", "example.com:8443", "example.com:443 example.com:80 a.example.com:8443"},
		"one port below":     {"*.example.com:8443", "a.example.com:8443", "a.example.com:8443", "example.com:8443 a.example.com:443"},
		"port 80 named":      {"example.com:80", "example.com:80", "example.com:80", "example.com:443"},
		"case and dots":      {" Example.COM. ", "example.com:443", "example.com:80", "example.com:22"},
		"punycode":           {"xn--bcher-kva.example", "xn--bcher-kva.example:443", "XN--BCHER-KVA.EXAMPLE:80", "bücher.example:443"},
		"an underscore":      {"a_b.example.com", "a_b.example.com:443", "a_b.example.com:80", "ab.example.com:443"},
		"an address":         {"1.1.1.1", "1.1.1.1:443 [::ffff:1.1.1.1]:443", "1.1.1.1:80", "1.1.1.2:443 1.1.1.1:53 01.1.1.1:443"},
		"an address's port":  {"1.1.1.1:853", "1.1.1.1:853", "1.1.1.1:853", "1.1.1.1:443"},
		"IPv6":               {"2606:4700::1111", "[2606:4700::1111]:443 [2606:4700:0:0::1111]:443", "[2606:4700::1111]:80", "2606:4700::1111:443 [2606:4700::1112]:443"},
		"IPv6 with a port":   {"[2606:4700::1111]:853", "[2606:4700::1111]:853", "[2606:4700::1111]:853", "[2606:4700::1111]:443"},
		"a preset":           {"preset:go", "proxy.golang.org:443 sum.golang.org:443", "proxy.golang.org:80", "storage.googleapis.com:443 registry.npmjs.org:443"},
		"a preset, any case": {"Preset:PyPI", "files.pythonhosted.org:443", "pypi.org:80", "upload.pypi.org:443"},
	} {
		r := mustParse(t, tt.pattern)
		for _, to := range strings.Fields(tt.tunnel) {
			if !r.AllowsTunnel(to) {
				t.Errorf("%s: %s does not allow CONNECT %s", name, tt.pattern, to)
			}
		}
		for _, to := range strings.Fields(tt.plain) {
			if !r.AllowsPlain(to) {
				t.Errorf("%s: %s does not allow http to %s", name, tt.pattern, to)
			}
		}
		for _, to := range strings.Fields(tt.not) {
			if r.AllowsTunnel(to) || r.AllowsPlain(to) {
				t.Errorf("%s: %s allows %s", name, tt.pattern, to)
			}
		}
	}
	r := mustParse(t, "example.com")
	if r.AllowsTunnel("example.com:80") || r.AllowsPlain("example.com:443") {
		t.Error("a host alone allows CONNECT at 80, or http at 443")
	}
	if !r.Allows("Example.com", 80) || !r.Allows("example.com", 443) || r.Allows("example.com", 81) || r.Allows("", 443) {
		t.Error("Allows differs")
	}
	if (egress.Rules{}).AllowsTunnel("example.com:443") {
		t.Error("no rules allow something")
	}
	if o := egress.Open(); !o.IsOpen() || !o.AllowsTunnel("anything.example:1234") || !o.AllowsPlain("anything.example:80") || o.AllowsTunnel("localhost:443") || o.AllowsTunnel("0x7f.1:443") {
		t.Error("open")
	}
}

func TestPatternsThatAreRefused(t *testing.T) {
	for pattern, words := range map[string]string{
		"":                              "empty",
		"*":                             "every host",
		"*:443":                         "beginning only",
		"https://example.com":           "is a URL",
		"example.com/path":              "has a path",
		"example.com:":                  "port",
		"example.com:0":                 "port",
		"example.com:65536":             "port",
		"example.com:0443":              "port",
		"example.com:https":             "port",
		"*.com":                         "public domain",
		"*.com.":                        "public domain",
		"*.co.uk":                       "public domain",
		"*.github.io":                   "public domain",
		"*.":                            "public domain",
		"a.*.example.com":               "beginning only",
		"*example.com":                  "beginning only",
		"example":                       "no dot",
		"localhost":                     "no dot",
		"exa mple.com":                  "not a host name",
		"-a.example.com":                "not a host name",
		"a..example.com":                "not a host name",
		".example.com":                  "not a host name",
		"bücher.example":                "xn--bcher-kva.example",
		"\xff.example":                  "punycode",
		"10.0.0.1":                      "not the usual form of a public",
		"169.254.169.254":               "not the usual form of a public",
		"127.0.0.1:80":                  "not the usual form of a public",
		"::1":                           "not the usual form of a public",
		"::ffff:1.1.1.1":                "not the usual form of a public",
		"2606:4700:0:0::1111":           "not the usual form of a public",
		"fe80::1%eth0":                  "zone",
		"*.1.1.1.1":                     "no names below",
		"127.1":                         "looks like an IP address",
		"0x7f000001.0x1":                "looks like an IP address",
		"1.1.1.01":                      "looks like an IP address",
		strings.Repeat("a.", 130) + "b": "253 bytes",
		strings.Repeat("a", 64) + ".b":  "not a host name",
		"preset:nothing":                "the presets are alpine, cargo",
	} {
		_, err := egress.Parse([]string{"example.com", pattern})
		bad := new(egress.PatternError)
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), words) || bad.Pattern != pattern || bad.Next == "" {
			t.Errorf("%q: %v; want something of %q", pattern, err, words)
		}
	}
	_, err := egress.Parse([]string{"*.com", "*"})
	if err == nil || strings.Count(err.Error(), "host pattern") != 2 {
		t.Errorf("two that are wrong are told as %v", err)
	}
}

func TestPresetsAreGoodPatterns(t *testing.T) {
	doc, err := os.ReadFile("../../docs/network.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range egress.Presets() {
		if r := mustParse(t, "preset:"+name); r.IsOpen() || len(egress.Preset(name)) == 0 {
			t.Errorf("%s is empty or open", name)
		}
		if !strings.Contains(string(doc), "| `"+name+"` |") {
			t.Errorf("docs/network.md has no row of %s", name)
		}
	}
	if egress.Preset("nothing") != nil {
		t.Error("a preset of no name")
	}
}

func TestOnlyPublicAddressesAreReachable(t *testing.T) {
	for _, s := range strings.Fields(`1.1.1.1 8.8.8.8 93.184.216.34 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 198.17.255.255 198.20.0.1
		192.0.1.1 223.255.255.255 ::ffff:1.1.1.1 2606:4700::1111 2001:4860:4860::8888 2620:4f:8000::1 2a00:1450::1 64:ff9b::1.1.1.1`) {
		if !egress.Reachable(netip.MustParseAddr(s)) {
			t.Errorf("%s is not reachable", s)
		}
	}
	for _, s := range strings.Fields(`0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254
		169.254.169.254 169.254.0.1 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.7
		203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16
		:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::1
		100::1 2001::1 2001:0:53aa:64c::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::1 2002:101:101::1 3fff::1 4000::1 5f00::1
		fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 2606:4700::1%eth0 fec0::1 ff02::1 ff0e::1`) {
		if egress.Reachable(netip.MustParseAddr(s)) {
			t.Errorf("%s is reachable", s)
		}
	}
	if egress.Reachable(netip.Addr{}) {
		t.Error("no address is reachable")
	}
}

// What is a pattern allows itself, never a private address, and never another host.
func FuzzRules(f *testing.F) {
	for _, s := range []string{"example.com", "*.example.com:8443", "preset:go", "*", "*.com", "1.1.1.1:53", "[2606:4700::1111]:1", "bücher.de", "a:b:c", "[::1", "]:", "*.", ".", ":"} {
		f.Add(s, "example.com:443")
	}
	f.Add("*.example.com", "a.example.com:443")
	f.Fuzz(func(t *testing.T, pattern, to string) {
		named, terr := egress.ParseTarget(to)
		if terr == nil {
			if again, err := egress.ParseTarget(named); err != nil || again != named {
				t.Errorf("%q is %q, which reads back as %q, %v", to, named, again, err)
			}
		}
		r, err := egress.Parse([]string{pattern})
		if err != nil {
			if !strings.Contains(err.Error(), "host pattern") {
				t.Errorf("%q: %v", pattern, err)
			}
			return
		}
		for _, other := range []string{"127.0.0.1:443", "[::1]:443", "169.254.169.254:80", "localhost:443", "nobody-asked-for-this.example:443"} {
			if r.AllowsTunnel(other) && !strings.Contains(pattern, "nobody-asked-for-this") {
				t.Errorf("%q allows %s", pattern, other)
			}
		}
		if terr != nil {
			if r.AllowsTunnel(to) || r.AllowsPlain(to) {
				t.Errorf("%q allows %q, which is no host", pattern, to)
			}
			return
		}
		if r.AllowsTunnel(to) != r.AllowsTunnel(named) {
			t.Errorf("%q: %q is not %q", pattern, to, named)
		}
		// The last two parts of a name that is allowed are in the pattern.
		host, _, err := net.SplitHostPort(named)
		if parts := strings.Split(host, "."); err == nil && r.AllowsTunnel(to) && !strings.Contains(strings.ToLower(pattern), "preset:") && !strings.Contains(host, ":") {
			if end := strings.Join(parts[len(parts)-2:], "."); !strings.Contains(strings.ToLower(pattern), end) {
				t.Errorf("%q allows %q", pattern, to)
			}
		}
	})
}
