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
// life.go has the life of an issue's agent as a table, each state once with what
// may follow it, and every change of state goes through it:
//
//	queued    waits for a place (agent.max), or can't start yet
//	starting  its pod is made or woken, its agent not at work yet
//	working   the agent works
//	asking    the agent needs a person; after agent.rest its pod sleeps
//	review    its pull request waits for a person; its pod sleeps likewise
//	failed    it ended by a fault or at agent.deadline; its pod sleeps likewise
//	stopped   a person ended it: no processes, all of its work kept
//	done      merged: its work is saved, its pod removed, and then it is gone
//	refused   nothing was started
//	gone      nothing is known or left of it
//
// ci.go gives what fails in CI back to the agent, in rounds, and calls a person when
// these are used up.
//
// queue.go gives places out, in turns by repository; clock.go measures how long
// something goes on, whatever the machine's clock does.
//
// The package imports nothing of ours: [Forge] and [Pods] are what it needs of
// the others, and the command wires them.
package reconcile
