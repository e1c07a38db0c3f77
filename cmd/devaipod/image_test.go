package main

import "testing"

func TestNamesOfImages(t *testing.T) {
	for name, want := range map[string]bool{
		"golang":                            true,
		"docker.io/library/golang:1.26":     true,
		"localhost:5000/a/b-c_d:v1":         true,
		"localhost/devaipod/agent:latest":   true,
		"Registry.example.org/a":            false,
		"dir:/etc":                          false,
		"oci:etc":                           false,
		"docker-archive:x":                  false,
		"containers-storage:x":              false,
		"docker://x":                        false,
		"https://example.org/x":             false,
		"/etc":                              false,
		"-x":                                false,
		"a b":                               false,
		"a@sha256:1234":                     false,
		"":                                  false,
		"a\n":                               false,
		"example.org/a@sha256:" + sixtyFour: true,
	} {
		if isImageName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

const sixtyFour = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
