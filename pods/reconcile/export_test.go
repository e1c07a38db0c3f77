package reconcile

import (
	"fmt"
	"slices"
)

// Walked are the steps that issues took, and how often.
func (l *Loop) Walked() map[[2]State]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.walked
}

// Strange are those that the life of an issue does not have.
func (l *Loop) Strange() (out []string) {
	for step := range l.Walked() {
		if !slices.Contains(life[step[0]].next, step[1]) {
			out = append(out, fmt.Sprintf("%q to %q", step[0], step[1]))
		}
	}
	return out
}

// Steps are all that the life of an issue has.
func Steps() (out [][2]State) {
	for from, st := range life {
		for _, to := range st.next {
			out = append(out, [2]State{from, to})
		}
	}
	return out
}

// Settle waits until Run has looked at all that was kicked so far.
func (l *Loop) Settle() {
	for settled := make(chan bool, 1); ; {
		l.asks <- func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			settled <- len(l.dirty) == 0 && !l.all
		}
		if <-settled {
			return
		}
	}
}

// Again is what an agent is told that is to try again.
const Again = again
