package egress

import "net/netip"

func prefixes(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}

// What is no address of the public internet: IANA's registries of special-purpose
// addresses (RFC 6890 and what has been added to them since), as far as they are
// not said to be globally reachable, and multicast. Of IPv6 that is all outside
// of the one block that is given out, and some within it.
var (
	special4 = prefixes(
		"0.0.0.0/8",       // this network; RFC 791
		"10.0.0.0/8",      // private; RFC 1918
		"100.64.0.0/10",   // carrier NAT; RFC 6598
		"127.0.0.0/8",     // loopback; RFC 1122
		"169.254.0.0/16",  // link-local, and clouds' metadata; RFC 3927
		"172.16.0.0/12",   // private
		"192.0.0.0/24",    // protocol assignments; RFC 6890
		"192.0.2.0/24",    // documentation; RFC 5737
		"192.88.99.0/24",  // 6to4 relays, given up; RFC 7526
		"192.168.0.0/16",  // private
		"198.18.0.0/15",   // benchmarks; RFC 2544
		"198.51.100.0/24", // documentation
		"203.0.113.0/24",  // documentation
		"224.0.0.0/4",     // multicast; RFC 5771
		"240.0.0.0/4",     // reserved, and broadcast; RFC 1112
		// Public by its number only: Azure's host answers its guests there.
		"168.63.129.16/32",
	)
	global6  = netip.MustParsePrefix("2000::/3") // RFC 4291
	special6 = prefixes(
		"2001::/23",     // protocol assignments, Teredo and ORCHID; RFC 2928, 4380, 7343
		"2001:db8::/32", // documentation; RFC 3849
		"2002::/16",     // 6to4, which has any IPv4 address inside; RFC 3056
		"3fff::/20",     // documentation; RFC 9637
	)
	nat64 = netip.MustParsePrefix("64:ff9b::/96") // has an IPv4 address inside; RFC 6052
)

// Reachable tells whether ip is an address of the public internet. It is what a
// [Proxy] goes by unless its Config says otherwise. It can't know which public
// addresses are the host's own.
func Reachable(ip netip.Addr) bool {
	if ip.Zone() != "" || !ip.IsValid() {
		return false
	}
	if ip = ip.Unmap(); ip.Is4() {
		return !within(special4, ip)
	}
	if nat64.Contains(ip) {
		b := ip.As16()
		return Reachable(netip.AddrFrom4([4]byte(b[12:])))
	}
	return global6.Contains(ip) && !within(special6, ip)
}

func within(all []netip.Prefix, ip netip.Addr) bool {
	for _, p := range all {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}
