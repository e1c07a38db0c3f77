package reconcile

import "time"

// A moment is a time that others tell of a pod: podman, its pod-api, the forge.
type moment struct {
	of   Key
	what string
}

// met is when that was, by them and by us.
type met struct{ said, ours time.Time }

// here puts such a time on our own clock, as long ago as it was when it was first
// told. A clock that is set afterwards makes no span longer or shorter.
func (l *Loop) here(of Key, what string, said time.Time) time.Time {
	m, known := l.moments[moment{of, what}]
	if !known || !m.said.Equal(said) {
		now := l.cfg.Now()
		m = met{said, now.Add(said.Sub(now.Round(0)))}
		l.moments[moment{of, what}] = m
	}
	return m.ours
}
