// Package gate is the pod's only door. It runs in the control container, one
// handler for the agent's socket and one for the workspace's, and lets through
// three things: requests to the one configured model, with the real key put in
// place of the gate's token; git of the pod's own repository, which the
// service answers; and, by a proxy, requests to the hosts on a list
// ([codeberg.org/devaipod/devaipod/pods/egress]). Everything else is refused with a word.
//
// What comes in is written by an agent: hostile. The key never goes back: the
// model's answers pass without the headers that could carry it, and redirects
// are not followed.
package gate
