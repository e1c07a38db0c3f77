// Package follow lets repositories of the forge follow upstreams: the default
// branch and the tags, forward only.
//
// A [Record] in the [Store] says which repository follows which upstream. The
// [Follower] compares the two every now and then, and when it is told to. One
// look at one repository, in look.go:
//
//   - The forge is asked by the repository's number what it is called now. One
//     that is gone is forgotten.
//   - The branch is protected, so that nobody but the service writes it.
//   - The git cache asks the upstream and fetches what is new.
//   - The forge is asked what it has. When its branch is an ancestor of the
//     upstream's, that very commit is pushed to the forge, out of the cache;
//     tags that the forge lacks as well.
//   - All else changes nothing and is a [Trouble]: it is told in the log once, and
//     in the record for as long as it lasts.
//
// Nothing is decided by what happened before, so a look that was killed at any
// point is made up for by the next one. By a look nothing is ever pushed to an
// upstream. [Follower.Export] alone does that: one commit, which people approved, to
// the branch that is followed, forward, between two looks.
package follow
