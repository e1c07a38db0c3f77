package reconcile

import "time"

// The machine's clock may jump, by hours and while agents work. So nothing that
// ends or tells anything compares two readings of it: what goes on is measured by
// Uptime, which only goes forward. The clock counts once, for what a loop finds
// that began before it was started.

// A stamp is a time of podman's, of a pod's or of the forge's, as it was when it
// was first seen.
type stamp struct {
	at   time.Time
	age  time.Duration // by the clock, then; never negative
	seen time.Duration // Uptime then
}

// elapsed is how long ago something was that an issue's pod tells the time of.
func (l *Loop) elapsed(pod Key, what string, at time.Time) time.Duration {
	k := stampKey{pod, what}
	s, known := l.stamps[k]
	if !known || !s.at.Equal(at) {
		s = stamp{at: at, age: max(0, l.cfg.Now().Sub(at)), seen: l.cfg.Uptime()}
		l.stamps[k] = s
	}
	return s.age + l.cfg.Uptime() - s.seen
}

type stampKey struct {
	pod  Key
	what string
}

// forgetStamps drops what is known of a pod that is gone.
func (l *Loop) forgetStamps(pod Key) {
	for k := range l.stamps {
		if k.pod == pod {
			delete(l.stamps, k)
		}
	}
}
