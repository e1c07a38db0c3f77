// Package saver keeps an agent's work from being lost: it runs in a container
// of its own that mounts the agent's volume read-only, and saves commits and
// the whole working tree, uncommitted and untracked files too, within seconds
// of a change, to the service.
//
// [Run] follows the tree for as long as the pod lives; [Once] saves everything
// and tells whether the service has it: it is what runs before a removal.
//
// One round of it:
//
//   - Watching (inotify) has told which entries of which directories changed.
//     They are read again by a walk of our own, step by step from open
//     directories and following no link (tree, file). Contents go to one git
//     fast-import, paths to an index of our own, of which git makes a tree.
//   - HEAD, branches and the newest stash are read by us (readTips). Commits
//     that are new are copied: one git reads the agent's objects, through links
//     that leave out its alternates, and another checks and stores what comes.
//     From then on nothing of the agent's repository is needed.
//   - If anything is news, a snapshot is made: a commit of the tree, whose
//     parents are the snapshot before, the agent's HEAD, and the tips of branches
//     that were rewritten or deleted, so that what was saved once stays
//     reachable. Its message lists what it lacks (podfile.Snapshot).
//   - git pushes to the service over a unix socket. While the service is away
//     snapshots wait in our own volume.
//
// The agent's tree is hostile. No git runs with it as work tree, and none reads
// its configuration, attributes, hooks or info. What it can do is to have less
// of its own work saved, and each such thing is listed or logged. Every child
// has limits of time and memory, and its own container around it, in which there
// is nothing to find: no network, no token, no home.
package saver
