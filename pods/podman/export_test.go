package podman

import "net/netip"

// FenceRules are the rules of a fence.
func FenceRules(instance string, others []string, resolvers, host []netip.Addr) string {
	return fencing{instance: instance, others: others, resolvers: resolvers, host: host}.rules()
}

// For the tests of what they say.
var (
	NameServers  = nameServers
	BridgePrefix = bridgePrefix
	Unmounted    = unmounted
	Ending       = ending
	Again        = again
)
