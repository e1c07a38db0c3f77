package egress

import (
	"slices"
	"sync"
	"time"
)

// A Block is what [Proxy.Blocked] tells of one host and port.
type Block struct {
	Host string // as the proxy read it: a valid host name or an IP address
	Port uint16
	// Why it was refused the last time, such as "is blocked: it is not on the list
	// of hosts that this pod may reach".
	Why         string
	First, Last time.Time
	Count       int64
	// Allow is the pattern that would allow it, "" when no pattern does: its
	// address is not public, or what the agent sent was not what it said.
	Allow string
}

// maxBlocked bounds how many are kept.
const maxBlocked = 100

// blocked keeps the newest refusals.
type blocked struct {
	now func() time.Time
	mu  sync.Mutex
	by  map[target]*Block
}

// add notes one, and tells whether it is the first of its kind that is known.
func (b *blocked) add(no *refusal) (first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.by == nil {
		b.by = map[target]*Block{}
	}
	now := b.now()
	one := b.by[no.to]
	if one == nil {
		if len(b.by) >= maxBlocked {
			b.forget()
		}
		one = &Block{Host: printable(no.to.host.String()), Port: no.to.port, First: now}
		b.by[no.to] = one
	}
	one.Last, one.Count, one.Why, one.Allow = now, one.Count+1, no.why, no.allow
	return one.Count == 1
}

// forget drops the one that was refused the longest ago.
func (b *blocked) forget() {
	var oldest target
	var at time.Time
	for to, one := range b.by {
		if at.IsZero() || one.Last.Before(at) {
			oldest, at = to, one.Last
		}
	}
	delete(b.by, oldest)
}

// Blocked lists what was refused by a rule, the newest first: the last hundred
// hosts and ports. What was no host at all is not among them.
func (p *Proxy) Blocked() []Block {
	p.blocked.mu.Lock()
	defer p.blocked.mu.Unlock()
	all := make([]Block, 0, len(p.blocked.by))
	for _, one := range p.blocked.by {
		all = append(all, *one)
	}
	slices.SortFunc(all, func(a, b Block) int { return b.Last.Compare(a.Last) })
	return all
}
