// Package pods is a pod's life: its names, what its four containers are made
// of, and the verbs that make, stop, resume and remove it.
//
// A pod is one issue's: an agent's container without a network, a workspace
// for people alike, a control container that holds the model's key and is
// the only way out, and a saver that keeps the agent's work from being lost
// (docs/architecture.md has the picture). [Name] and the
// labels it writes are worked out from (instance, repository, issue), so a
// step that ran twice finds what it made; [Manager] needs no database.
package pods
