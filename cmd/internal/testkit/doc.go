// Package testkit is what the demo and the end-to-end tests share: a private
// place on this machine in which the real program runs on real parts, and out
// of which nothing reaches a person's own pods.
//
// A [World] is a podman of its own: configuration, storage, networks and
// sockets in one directory, handed to programs by CONTAINERS_CONF and
// CONTAINERS_STORAGE_CONF, so that the `podman system service` which devaipod
// starts is in that world too. A [Stack] is devaipod in such a world: its
// configuration, free ports, images, command line. An [API] asks the forge as
// one of its accounts, by HTTP and without the product's own client, since
// outcomes are to be read from the forge and not from us. [Proof] is what can't
// be faked: the sha256 of a random nonce, computed inside the agent's container.
//
// A walk through it:
//
//	w, err := testkit.NewWorld(dir)
//	s, err := testkit.NewStack(w, testkit.StackConfig{Instance: "demo", …})
//	err = s.LoadImages(ctx, os.Stderr)
//	err = s.Run(ctx, testkit.Call{Args: []string{"forge", "up", "-d"}})
//	api := s.Person()
//	…
//	err = w.Remove(ctx) // all of it
package testkit
