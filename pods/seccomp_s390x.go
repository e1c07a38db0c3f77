package pods

// cloneFlags is which argument of clone(2) has the flags.
func cloneFlags() uint { return 1 }
