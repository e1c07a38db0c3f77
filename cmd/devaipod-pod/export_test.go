package main

// Run is run, for the test program that plays the binary.
var Run = run

// Inventory, ShellOf and Signal are what the command line runs for a person.
var (
	Inventory = inventory
	ShellOf   = shellOf
	Signal    = runSignal
)
