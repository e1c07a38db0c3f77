package secret_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/secret"
)

func put(t *testing.T, s secret.Store, sec secret.Secret, value string) {
	t.Helper()
	if err := s.Put(sec, value); err != nil {
		t.Fatal(err)
	}
}

func TestSecrets(t *testing.T) {
	s := secret.Store{Dir: filepath.Join(t.TempDir(), "secrets")}
	if found, err := s.List(); err != nil || len(found) != 0 {
		t.Errorf("%v %v", found, err)
	}
	put(t, s, secret.Secret{Name: "model"}, "old")
	put(t, s, secret.Secret{Name: "model"}, "the model's")
	put(t, s, secret.Secret{Name: "registry", Host: "registry.example.org", Repos: []string{"ada/App"}}, "r-1")
	put(t, s, secret.Secret{Name: "search", Host: "search.example.org", Header: "x-key: {}"}, "s-1")

	if value, ok, err := s.Value("model"); value != "the model's" || !ok || err != nil {
		t.Errorf("%q %v %v", value, ok, err)
	}
	if value, ok, err := s.Value("none"); value != "" || ok || err != nil {
		t.Errorf("%q %v %v", value, ok, err)
	}
	for repo, want := range map[string]string{
		"ada/app": `[{"host":"registry.example.org","header":"Authorization","value":"Bearer r-1","secret":"r-1"},{"host":"search.example.org","header":"X-Key","value":"s-1","secret":"s-1"}]`,
		"eve/app": `[{"host":"search.example.org","header":"X-Key","value":"s-1","secret":"s-1"}]`,
	} {
		found, err := s.For(repo)
		if got, _ := json.Marshal(found); string(got) != want || err != nil {
			t.Errorf("%s gets %s %v", repo, got, err)
		}
	}
	found, err := s.List()
	text, _ := json.Marshal(found)
	if err != nil || len(found) != 3 || found[1].Name != "registry" || found[1].Header != secret.DefaultHeader || strings.Contains(string(text), "r-1") {
		t.Errorf("%s %v", text, err)
	}
	files, err := filepath.Glob(filepath.Join(s.Dir, "*"))
	if err != nil || len(files) != 3 {
		t.Errorf("%q %v", files, err)
	}
	for _, f := range append(files, s.Dir) {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", f, info.Mode(), err)
		}
	}
	if err := s.Remove("model"); err != nil {
		t.Error(err)
	}
	if err := s.Remove("model"); err == nil || !strings.Contains(err.Error(), "there is no secret model") {
		t.Error(err)
	}
}

func TestWhatIsNoSecret(t *testing.T) {
	s := secret.Store{Dir: filepath.Join(t.TempDir(), "secrets")}
	for name, tt := range map[string]struct {
		sec   secret.Secret
		value string
	}{
		"a name that climbs":        {secret.Secret{Name: "../up"}, "v"},
		"no name":                   {secret.Secret{}, "v"},
		"a header without a value":  {secret.Secret{Name: "a", Host: "h", Header: "X-Key: none"}, "v"},
		"a header without a name":   {secret.Secret{Name: "a", Host: "h", Header: "{}"}, "v"},
		"a header with a bad name":  {secret.Secret{Name: "a", Host: "h", Header: "X Key: {}"}, "v"},
		"a value of two lines":      {secret.Secret{Name: "a", Host: "h"}, "v\nHost: x"},
		"a header without a host":   {secret.Secret{Name: "a", Header: "X-Key: {}"}, "v"},
		"repositories without host": {secret.Secret{Name: "a", Repos: []string{"a/b"}}, "v"},
	} {
		if err := s.Put(tt.sec, tt.value); err == nil {
			t.Errorf("%s is stored", name)
		} else if strings.Contains(err.Error(), tt.value+"\n") {
			t.Errorf("%s: the value is told: %v", name, err)
		}
	}
	if found, err := s.List(); err != nil || len(found) != 0 {
		t.Errorf("%v %v", found, err)
	}
	put(t, s, secret.Secret{Name: "torn", Host: "h"}, "v")
	if err := os.WriteFile(filepath.Join(s.Dir, "torn.json"), []byte(`{"na`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.For("a/b"); err == nil || !strings.Contains(err.Error(), "set it again") {
		t.Error(err)
	}
	if _, _, err := s.Value("torn"); err == nil {
		t.Error("a torn secret has a value")
	}
	put(t, s, secret.Secret{Name: "torn", Host: "h"}, "v")
	if found, err := s.For("a/b"); err != nil || len(found) != 1 || found[0] != (podfile.Injection{Host: "h", Header: "Authorization", Value: "Bearer v", Secret: "v"}) {
		t.Errorf("%v %v", found, err)
	}
}
