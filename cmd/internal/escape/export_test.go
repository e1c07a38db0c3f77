package main

// Backwards is how secrets are written in a [Config].
var Backwards = backwards
