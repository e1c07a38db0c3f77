// Package web is what a person sees of pods in a browser: a list of all at
// http://pods.localhost:PORT/pods/, and a page for each on an origin of its own,
// http://NAME.localhost:PORT (RFC 6761, 6.3).
//
// # Who may see it
//
// A person logs in once, by the token or by a ticket that `devaipod open` gets: both
// are good for /pods/. From there a pod's page is entered by a ticket for that origin,
// good for once and for a minute. What a browser keeps is a cookie of one host,
// HttpOnly, signed with the token: another token ends all of them, a service that is
// started again none. The Host header has to name an origin that is ours, so that a
// name which somebody points at 127.0.0.1 gets nothing. Writes have to come from the
// page's own origin ([http.CrossOriginProtection]).
//
// All that an agent says is text here, never markup: html/template escapes it on the
// server, and the script of the page makes text nodes of it. The pages run no script
// but their own (Content-Security-Policy).
package web
