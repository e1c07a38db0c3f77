//go:build !faults

package main

import "codeberg.org/devaipod/devaipod/podapi"

// checked is a pod-api's client. The tests' build holds all that it exchanges
// against the pod-api's document (checked_on.go).
func checked(c *podapi.Client) *podapi.Client { return c }
