package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/sshd"
)

// runSSHD serves the SSH connection that the standard streams are, as the user and in
// the directory and environment that it was started with. Nothing listens.
func runSSHD(ctx context.Context, stdin, stdout *os.File, stderr io.Writer) error {
	in, err := pollable(stdin)
	if err != nil {
		return err
	}
	out, err := pollable(stdout)
	if err != nil {
		return err
	}
	r := bufio.NewReader(in) // for a line: the server has a buffer of its own
	cfg, err := hello(r)
	if err != nil {
		return fmt.Errorf("sshd: %w", err)
	}
	sshd.HeedSignals()
	debug.SetGCPercent(400) // as devaipod sshd has it
	runtime.GOMAXPROCS(1)   // as that has it for one connection
	cfg.User, cfg.Env = workspaceUser(), os.Environ()
	cfg.Log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})) // to who connects
	server, err := sshd.New(cfg)
	if err != nil {
		return fmt.Errorf("sshd: %w", err)
	}
	server.ServeStream(ctx, struct {
		io.Reader
		io.Closer
	}{r, in}, out)
	return nil
}

// hello reads what is told before the connection.
func hello(r *bufio.Reader) (cfg sshd.Config, err error) {
	var h podfile.SSHHello
	line, err := readLine(r, podfile.MaxSSHHello)
	if err != nil {
		return cfg, fmt.Errorf("reading what to serve with: %w", err)
	}
	if err := json.Unmarshal(line, &h); err != nil {
		return cfg, fmt.Errorf("reading what to serve with: %w", err)
	}
	if cfg.HostKey, err = gossh.ParsePrivateKey([]byte(h.HostKey)); err != nil {
		return cfg, fmt.Errorf("the host key: %w", err)
	}
	cert, _, _, _, err := gossh.ParseAuthorizedKey([]byte(h.HostCert))
	if err != nil {
		return cfg, fmt.Errorf("the host key's certificate: %w", err)
	}
	of, ok := cert.(*gossh.Certificate)
	if !ok {
		return cfg, errors.New("the host key's certificate is none")
	}
	if cfg.HostCert, err = gossh.NewCertSigner(of, cfg.HostKey); err != nil {
		return cfg, fmt.Errorf("the host key's certificate: %w", err)
	}
	rules, _ := sshd.ParseKeys([]byte(h.AuthorizedKeys)) // who sends them has said what is wrong
	cfg.Keys = rules
	return cfg, nil
}

// readLine reads a line of at most n bytes, without its end.
func readLine(r *bufio.Reader, n int) (line []byte, err error) {
	for {
		part, more, err := r.ReadLine()
		if err != nil {
			return nil, err
		}
		line = append(line, part...)
		if len(line) > n {
			return nil, fmt.Errorf("the line has more than %d bytes", n)
		}
		if !more {
			return line, nil
		}
	}
}

// pollable is a file whose Close ends a Read of it.
func pollable(f *os.File) (*os.File, error) {
	fd, err := syscall.Dup(int(f.Fd())) //nolint:gosec // a descriptor
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, syscall.Close(fd))
	}
	return os.NewFile(uintptr(fd), f.Name()), nil //nolint:gosec // a descriptor
}

// workspaceUser is who the container's commands run as: at home where its volume is,
// in the directory that the repository wants, with the PATH of the image.
func workspaceUser() sshd.User {
	u := sshd.Me()
	if home := os.Getenv("HOME"); home != "" {
		u.Home = home
	}
	if dir, err := os.Getwd(); err == nil {
		u.Dir = dir
	}
	u.Plain = true
	return u
}
