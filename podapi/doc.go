// Package podapi is the pod's own API: it drives the agent and tells how it is
// doing, over HTTP on a unix socket that only the service can reach.
//
// [Server] is the gin service (/healthz, /readyz, /summary, /events, /messages,
// /stop), [Client] its other end, and [Journal] the bounded list of what the
// agent did that /events replays. What drives the agent is a [Driver];
// podapi/opencode is the one for opencode. What goes over the socket is in
// openapi.yaml, which tests hold all of it against (podapi/conform).
//
// Everything that the agent says is hostile: bounded here, and made harmless
// by whoever shows it.
package podapi
