package reconcile

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
