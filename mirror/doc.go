// Package mirror is the git side of the service: what pods read from and push
// to, and which of their pushes are let through.
//
// Today it holds the work endpoint: /work/<owner>/<name>.git, git's smart HTTP
// protocol for one pod and one repository, answered by the forge itself. A
// fetch is passed on as it is. A push is read up to the end of its command
// list; only when every command stays within the pod's branch prefix is it
// passed on, pack and all, so that the client's success is the forge's
// success. Otherwise nothing reaches the forge and the client is told, in
// git's own output, which ref was refused, why, and what to do.
//
// [Work] is the endpoint, [Rules] say what one pod may do, and the pkt-line
// reader in pktline.go is the only parser of bytes that an agent wrote.
// Sources: gitprotocol-http(5), gitprotocol-pack(5), gitprotocol-common(5).
package mirror
