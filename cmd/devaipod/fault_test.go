package main

import "testing"

// The end-to-end tests run a build that is killed at fault points; what people run goes on
// there. This is that one.
func TestFaultPointsDoNothingForPeople(t *testing.T) {
	fault("a point")
}
