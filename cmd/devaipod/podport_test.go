package main_test

import (
	"net"
	"testing"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
)

func TestAModelOnThisHostIsReachedByTheService(t *testing.T) {
	for url, want := range map[string]string{
		"http://127.0.0.1:11434/v1": "127.0.0.1:11434",
		"http://LOCALHOST/v1":       "LOCALHOST:80",
		"https://[::1]/v1":          "[::1]:443",
		"https://api.example.org":   "",
		"http://192.0.2.7:8000/v1":  "", // of nobody's host
		"::":                        "",
	} {
		if got := main.ModelAddress(url); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.IsLinkLocalUnicast() {
			continue
		}
		at := net.JoinHostPort(n.IP.String(), "8000")
		if got := main.ModelAddress("http://" + at + "/v1"); got != at {
			t.Errorf("this host's %s: %q", at, got)
		}
	}
}
