package main

import (
	"context"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

// Run is run, for the test program that plays the binary.
var Run = run

// Inventory, ShellOf and Signal are what the command line runs for a person.
var (
	Inventory = inventory
	ShellOf   = shellOf
	Signal    = runSignal
)

// Meter is what a meter has counted when ctx ends.
func Meter(ctx context.Context, every time.Duration, state func() podapi.State, ask func() ([]byte, error)) int64 {
	m := &meter{every: every, state: state, ask: func(context.Context, string) ([]byte, error) { return ask() }}
	m.watch(ctx)
	return m.computes.Load()
}
