//go:build !faults

package main

// fault is called before each change that the service makes, with its name.
// In what people run there are no fault points; fault_on.go has the tests'.
var fault func(point string)
