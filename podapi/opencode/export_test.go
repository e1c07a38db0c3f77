package opencode

// Seen is how much a driver remembers of what it journaled, once its Run has ended.
func (d *Driver) Seen() int { return len(d.seen) }
