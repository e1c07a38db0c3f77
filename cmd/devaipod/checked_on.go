//go:build faults

package main

import (
	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/conform"
)

// The tests' build: what is not as the pod-api's document has it is an error.
func checked(c *podapi.Client) *podapi.Client { return c.Through(conform.Transport) }
