package podfile

// Work is what a workspace holds that neither the forge has, as far as its clone
// knows that, nor git would make again. Ignored files don't count.
type Work struct {
	Commits []string `json:"commits,omitempty"` // that no remote branch has, the newest first
	Changes []string `json:"changes,omitempty"` // paths that are not committed
	Stashes []string `json:"stashes,omitempty"`
	Beside  []string `json:"beside,omitempty"` // what lies beside the clone
	// More is how many entries the lists above leave out.
	More int `json:"more,omitempty"`
	// Broken says why it can't be told what there is.
	Broken string `json:"broken,omitempty"`
}

// Empty tells whether nothing would be lost with the workspace.
func (w Work) Empty() bool {
	return len(w.Commits)+len(w.Changes)+len(w.Stashes)+len(w.Beside)+w.More == 0 && w.Broken == ""
}
