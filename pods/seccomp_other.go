//go:build !s390x

package pods

// cloneFlags is which argument of clone(2) has the flags.
func cloneFlags() uint { return 0 }
