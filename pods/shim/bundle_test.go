package shim_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/shim"
)

func TestProgramsAreToldOfTheProxy(t *testing.T) {
	dir, home := t.TempDir(), t.TempDir()
	own := []byte("the gate's own\n")
	if err := os.WriteFile(filepath.Join(dir, podfile.CACert), own, 0o644); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(home, ".gradle/gradle.properties")
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := shim.Config{GateAddr: "127.0.0.1:8099", Token: "the-token", SocketDir: dir, Home: home, Log: slog.New(slog.DiscardHandler)}
	for range 2 {
		if err := cfg.TellPrograms(); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	system, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		t.Fatal("this machine has no authorities (apt-get install ca-certificates): ", err)
	}
	bundle := filepath.Join(dir, filepath.Base(podfile.CABundle))
	if got := read(bundle); !bytes.HasPrefix([]byte(got), system) || !strings.HasSuffix(got, string(own)) {
		t.Errorf("the bundle has %d bytes", len(got))
	}
	maven := filepath.Join(home, ".m2/settings.xml")
	for path, want := range map[string]string{maven: "the-token", kept: "mine", filepath.Join(dir, filepath.Base(podfile.AptConfig)): "http://devaipod:the-token@127.0.0.1:8099"} {
		if got := read(path); !strings.Contains(got, want) {
			t.Errorf("%s: %q", path, got)
		}
	}
	if info, err := os.Stat(maven); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	// A container without a way to secrets, such as a workspace, trusts the system's.
	if err := os.Remove(filepath.Join(dir, podfile.CACert)); err != nil {
		t.Fatal(err)
	}
	if err := cfg.TellPrograms(); err != nil {
		t.Fatal(err)
	}
	if got := read(bundle); strings.Contains(got, string(own)) {
		t.Error("the gate's own is trusted still")
	}
}
