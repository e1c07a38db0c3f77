package podfile

import (
	"fmt"
	"time"
)

// SavedPrefix begins the refs with what was saved of an issue's agent
// (refs/saved/3/): below it are "work", the chain of snapshots of the tree;
// "heads/BRANCH", the agent's branches; "stash/newest", its newest stash; and
// "kept/ID", what an earlier saver of the issue had saved.
func SavedPrefix(issue int64) string { return fmt.Sprintf("refs/saved/%d/", issue) }

// Why something is not in a snapshot.
const (
	WhyIgnored   = "ignored"           // by a .gitignore
	WhyNested    = "nested repository" // a repository in the tree
	WhyLarge     = "too large"
	WhyUnread    = "unreadable"
	WhySpecial   = "special file" // a fifo, socket or device
	WhyQuota     = "over quota"
	WhyName      = "name" // one that git refuses, or one that is too long
	WhyDeep      = "too deep"
	WhyCommits   = "commits" // of a branch, or of HEAD, that can't be read
	WhyOutside   = "outside" // in the agent's volume, beside the clone
	WhyUnsettled = "changing"
)

// NotSaved is something that a snapshot lacks.
type NotSaved struct {
	Path string `json:"path"`          // slash-separated, from the clone's root
	Raw  []byte `json:"raw,omitempty"` // the path's bytes where they are not UTF-8
	Why  string `json:"why"`           // one of the Why constants
	Size int64  `json:"size,omitempty"`
	// Detail says more, for people; of a directory's size that it is a part.
	Detail string `json:"detail,omitempty"`
}

// A Snapshot is what the message of a snapshot's commit tells: its first line
// is "Saved at TIME", then comes an empty line and this as JSON.
type Snapshot struct {
	Branch   string `json:"branch,omitempty"`   // that HEAD names
	Head     string `json:"head,omitempty"`     // the agent's commit, a parent
	Previous string `json:"previous,omitempty"` // the snapshot before, the first parent
	// Old are tips of branches that were rewritten or deleted, parents too.
	Old      []string   `json:"old,omitempty"`
	NotSaved []NotSaved `json:"not_saved,omitempty"`
	More     int        `json:"more,omitempty"` // entries left out of the list
}

// Saved is what a saver says that was run once.
type Saved struct {
	Snapshot
	// Complete: the service has everything but what NotSaved lists.
	Complete bool      `json:"complete"`
	At       time.Time `json:"at"`
	// ID is the newest snapshot's commit, "" when there was never anything.
	ID    string `json:"id,omitempty"`
	Error string `json:"error,omitempty"` // why it is not complete
}
