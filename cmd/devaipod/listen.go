package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// listenUnix listens on path, mode 0600, in place of what a killed process
// left there. The instance's lock is what keeps two services apart.
func listenUnix(path string) (net.Listener, error) { return listenUnixAs(path, 0o600) }

// listenUnixAs lets more than this user in, as far as the directories around it
// do.
func listenUnixAs(path string, mode fs.FileMode) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	// The directory is 0700, so nobody gets in before this.
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// listenTCP listens on a loopback address and says what to do when it is taken.
func listenTCP(addr, key string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, portTaken(addr, key)
	}
	return l, err
}
