//go:build !faults

package main

// fault is called before each change that the service makes, with its name.
// In what people run that does nothing; fault_on.go has the tests' own.
func fault(string) {}
