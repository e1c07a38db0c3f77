// Package reconcile joins the forge and the pods: it looks at what people ask
// for (a label on an issue) and at what is there (pods, branches, pull
// requests), and takes the next step that brings the second to the first.
//
// It is level-triggered. An event ([Loop.Kick]) carries an issue's key only and
// makes the loop fast; the slow pass over everything makes it true; the pass at
// start makes it recover. Every step finds what an earlier try made, so a
// process killed at any line and started again comes to the same end.
//
// A walk through one issue: [Loop.Run] takes a key, reconcileOne reads the
// issue anew, and ends in one of begin (may this label start a pod? invariant
// S1), advance (a pod is there: branch → draft pull request → ready for
// review) or finish (label gone, issue closed, pull request merged).
// lost.go is for issues whose place on the forge is gone, renamed or archived,
// own.go tells our own writes from a person's, and view.go renders what people
// read.
//
// The package imports nothing of ours: [Forge] and [Pods] are what it needs of
// the others, and the command wires them.
package reconcile
