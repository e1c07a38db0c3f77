package sshd

import "io"

// ServeSFTP is for tests that send anything.
func ServeSFTP(c io.ReadWriteCloser) error { return serveSFTP(c) }
