// Package lab is an internet of a test's own: hosts in a network namespace that
// the test makes, and one wire to it. What runs in the namespace where [New] was
// called takes the lab for the whole world, and its packets can end nowhere else:
// New refuses a namespace that has any interface but loopback, so it can't be
// called on a machine's own network, and the lab's end of the wire knows no route
// beyond its hosts.
//
// All addresses are from the ranges for documentation (RFC 5737, RFC 3849), but for
// the one at which clouds have their metadata service, which the lab has too.
//
// A test enters a namespace of its own ([Enter] starts it again in one), then
//
//	l, err := lab.New(ctx)
//	defer l.Close()
//	… // run podman here: its default route ends in the lab
//	l.Saw("token") // whether that ever reached a host of the lab
//
// A [Witness] counts the packets of a namespace that have an address of the lab's:
// one in the machine's own namespace must count none.
package lab
