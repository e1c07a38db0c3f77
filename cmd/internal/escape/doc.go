// Command escape is run inside a pod's agent container, in the agent's place, and
// tries every way out of it that we know of: to the network, to the host, to other
// pods, and to secrets. The tests in this folder run it in a pod that is made as
// the product makes it, where every probe must fail, and in a container that is
// open, where every probe must succeed: a probe that could never have worked shows
// nothing.
//
// It waits for a [Config] in the file ConfigPath, runs all probes, and prints one
// [Result] a line, as JSON. A probe sends packets to hosts of the test's lab alone
// (cmd/internal/testkit/lab), and does no harm to what it reaches: it opens for
// writing what it then does not write, and sends signals that do nothing.
//
// It is all that there is in the image: called as git, it makes what the shim takes
// for a clone; with victim, it is a process of the host for probes to find; with get
// and serve, a client and a server of the web in other containers.
package main
