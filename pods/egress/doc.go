// Package egress is the forward proxy by which a pod reaches hosts of the
// internet: those on a list, and no other. It runs in the pod's control
// container; what asks it is written by an agent, hostile.
//
// [Parse] reads the list into [Rules]. [New] makes a [Proxy] of it, an
// [http.Handler] for two kinds of request (RFC 9110, 9.3.6 and 7.6): CONNECT,
// and http:// in absolute form; [IsProxyRequest] tells them from others.
//
// A CONNECT goes through these steps, and ends with the first that fails, with
// a word on what to do:
//
//   - the client shows its token (Config.Authorized);
//   - the host is on the list, with this port;
//   - the proxy itself resolves the name. Each address that it has must be one
//     of the public internet ([Reachable]): a name that has a private one too is
//     refused as a whole, since it may lead inside the next time (rebinding).
//     It then dials the very addresses it has looked at, never the name;
//   - on a port for TLS, the first bytes of the client are a whole TLS
//     ClientHello (RFC 8446, 4.1.2) with the server name (RFC 6066, 3) that
//     CONNECT had. Not a byte goes out before. An encrypted ClientHello (RFC
//     9849) is refused, since the name inside may be any. From then on bytes
//     pass as they are.
//
// On a port that a rule names and that is none of those for TLS, bytes pass in
// both directions at once, but what begins like TLS is looked at the same way.
//
// The proxy can't see what is said inside of a tunnel: a server that answers for
// many names, such as a content network's, may take another name from the HTTP
// request within. An allowed host is one that what the agent knows can be sent to.
//
// For the hosts that Config.Inject gives headers for, the proxy ends TLS itself,
// with a certificate by a [CA] of the pod's own, and puts the headers on each
// request: the secret in them is not in the agent's reach. See intercept.go.
//
// [Proxy.SetRules] takes effect at once: what is no longer allowed is cut.
// [Proxy.Blocked] tells what was refused. [ProxyEnv] and [ProxyFiles] are what
// programs need to find the proxy.
package egress
