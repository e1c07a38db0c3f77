// Package sshd is an SSH server for the machine or container that it runs in, as the
// user who started it: RFC 4251 to 4254, with the extensions of OpenSSH's PROTOCOL
// that its clients use. It needs no sshd, no root and nothing of the image but, for
// commands, a shell.
//
// A [Server] is made from a [Config] and serves a listener. A connection that its
// [Keys] let in opens channels: a session runs one command, a shell or SFTP
// (session.go, process.go, sftp.go); others carry forwarded ports and sockets
// (forward.go).
//
// What clients send is bounded and not trusted; who is let in may do all that the
// user can, as far as the line of its key allows.
package sshd
