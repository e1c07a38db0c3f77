package image_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/image"
)

// rooted makes a root file system of a few files; a name with a slash at its end is
// a directory.
func rooted(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(file, 0o700)
		} else {
			err = os.WriteFile(file, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestWhatAnImageHas(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\n"
	homeless := image.Facts{Accounts: []image.Account{{Name: "dev", UID: 1000, GID: 1000}}}
	for name, tt := range map[string]struct {
		files map[string]string
		want  image.Facts
	}{
		"nothing":             {nil, image.Facts{}},
		"musl":                {map[string]string{"lib/ld-musl-x86_64.so.1": ""}, image.Facts{LibC: image.Musl}},
		"glibc":               {map[string]string{"lib64/ld-linux-x86-64.so.2": ""}, image.Facts{LibC: image.Glibc}},
		"a user with a home":  {map[string]string{"etc/passwd": passwd + "dev:x:1000:1000::/home/dev:/bin/sh\n", "home/dev/": ""}, image.Facts{Home: "/home/dev", Accounts: []image.Account{{"dev", 1000, 1000, "/home/dev"}}}},
		"one without":         {map[string]string{"etc/passwd": passwd + "dev:x:1000:1000::/home/dev:/bin/sh\n"}, homeless},
		"one whose home is /": {map[string]string{"etc/passwd": "dev:x:1000:1000::/:/bin/sh\n"}, homeless},
		"one that climbs":     {map[string]string{"etc/passwd": "dev:x:1000:1000::/home/../etc:/bin/sh\n"}, homeless},
		"one below root's":    {map[string]string{"etc/passwd": "dev:x:1000:1000::/root/x:/bin/sh\n", "root/x/": ""}, homeless},
		"other users": {
			map[string]string{"etc/passwd": passwd + "a:x:10001:1::/home/a:/\nb:x:1:1000::/home/b:/\n:::\nnobody:x:65534:65534::/:/\n-c:x:1002:1002::/:/\nd:x:1003:0::/:/\n", "home/a/": "", "home/b/": ""},
			image.Facts{Accounts: []image.Account{{"a", 10001, 1, "/home/a"}}},
		},
		"authorities":   {map[string]string{"etc/pki/tls/certs/ca-bundle.crt": "x"}, image.Facts{CAs: "/etc/pki/tls/certs/ca-bundle.crt"}},
		"an empty file": {map[string]string{"etc/ssl/cert.pem": ""}, image.Facts{}},
	} {
		got := image.Look(t.Context(), rooted(t, tt.files), "", 1000)
		got.Git, got.Shell = "", "" // this machine's
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

// What the image's programs do is theirs.
func TestProgramsOfAnImage(t *testing.T) {
	bin := rooted(t, nil)
	for name, tt := range map[string]struct {
		script, want string
		fails        bool
	}{
		"a usual one":           {"echo git version 2.39.5", "2.39.5", false},
		"one that adds words":   {"echo git version 2.39.5 '(Apple Git-154)'", "2.39.5", false},
		"one that prints a lot": {"echo git version 2.39.5; while echo xxxxxxxxxxxxxxxxxxxxxxxxx; do :; done", "", true},
		"one that fails":        {"echo git version 2.39.5; exit 1", "", true},
		"one without a number":  {"echo hello", "", false},
	} {
		if err := os.WriteFile(filepath.Join(bin, "git"), []byte("#!/bin/sh\n"+tt.script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin)
		if got := image.Look(t.Context(), bin, filepath.Join(bin, "git"), 1000); got.Git != tt.want || (got.Tool != "") != tt.fails {
			t.Errorf("%s: git %q, tool %q", name, got.Git, got.Tool)
		}
	}
}

func TestWhichImagesWork(t *testing.T) {
	for _, tt := range []struct {
		name  string
		facts image.Facts
		want  string // in the error, "" for none
	}{
		{"all there is", image.Facts{Git: "2.47.1"}, ""},
		{"no git, and ours runs", image.Facts{}, ""},
		{"git of its own alone", image.Facts{Git: "2.32", Tool: "exec format error"}, ""},
		{"an old git, and ours does not run", image.Facts{Git: "2.20.1", Tool: "exec format error"}, "install git 2.32 or newer"},
		{"no git at all", image.Facts{Tool: "exec format error"}, "exec format error"},
		{"no shell", image.Facts{Git: "2.47.1", Shell: "no such file"}, "use an image with a shell"},
	} {
		if err := tt.facts.Judge(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	for git, want := range map[string]bool{"": false, "2.31.9": false, "2.32.0": true, "3.0": true, "1.99": false, "x": false} {
		if (image.Facts{Git: git}).HasGit() != want {
			t.Errorf("git %q will do: %v", git, !want)
		}
	}
}

func TestWhatALookSaysIsNotBelievedBlindly(t *testing.T) {
	for log, want := range map[string]string{
		"noise\n{\"libc\":\"musl\",\"home\":\"/home/dev\"}\n": "/home/dev",
		"":                            "-",
		"panic: no\n":                 "-",
		"{\"home\":":                  "-",
		"{\"home\":\"/\"}\n":          "-",
		"{\"home\":\"/workspace\"}\n": "-",
		"{\"home\":\"/home/a:b\"}\n":  "-",
		"{\"home\":\"/home/..\"}\n":   "-",
		"{\"home\":\"\"}\n":           "",
	} {
		f, err := image.Parse([]byte(log))
		got := f.Home
		if err != nil {
			got = "-"
		}
		if got != want {
			t.Errorf("%q: %q, want %q (%v)", log, got, want, err)
		}
	}
}
