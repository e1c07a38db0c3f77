package main

// Run is run, for the test program that plays the binary.
var Run = run
