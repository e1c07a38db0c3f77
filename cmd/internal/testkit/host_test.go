package testkit_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/podman"
)

func TestPodmanIsAskedOnceWhatItRunsOn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "host.json")
	ask := func() string {
		t.Helper()
		c, err := podman.Connect(t.Context(), "unix://"+world.client.Socket())
		if err != nil {
			t.Fatal(err)
		}
		h, err := c.KeepHost(file).Host(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return h.Version
	}
	version := ask()
	kept, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	change := func(from, to string) {
		t.Helper()
		b := bytes.Replace(kept, []byte(from), []byte(to), 1)
		if bytes.Equal(b, kept) {
			t.Fatalf("no %s in %s", from, kept)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ why, from, to, want string }{
		{"kept for another process", `"Version":"` + version, `"Version":"kept`, "kept"},
		{"another process of podman's told it", `"By":"`, `"By":"1`, version},
		{"broken", `{"By":`, `{`, version},
	} {
		change(c.from, c.to)
		if got := ask(); got != c.want {
			t.Errorf("%s: version %s, want %s", c.why, got, c.want)
		}
	}
	file = filepath.Join(t.TempDir(), "nowhere", "host.json")
	if got := ask(); got != version {
		t.Errorf("with nowhere to keep it: version %s, want %s", got, version)
	}
}
