// Package cmd holds no code: its test reads the imports of the whole module and
// fails on an arrow that docs/architecture.md does not allow.
package cmd_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "codeberg.org/devaipod/devaipod/"

const tags = "remote containers_image_openpgp exclude_graphdriver_btrfs btrfs_noversion nomsgpack"

// allowed says which of our packages each of our packages may import, nested
// ones by the longest prefix that is listed. cmd may import everything.
var allowed = map[string][]string{
	"ci":               {"ci/job"},
	"ci/broker":        {"ci", "ci/job"},
	"ci/cache":         {},
	"ci/dockerfile":    {},
	"ci/door":          {},
	"ci/images":        {},
	"ci/job":           {},
	"ci/sandbox":       {"ci/dockerfile", "ci/job", "pods/podman", "pods/relay"},
	"ci/worker":        {"ci/job", "mirror/gitproc"},
	"compose":          {},
	"forge":            {},
	"mirror":           {"mirror/gitproc", "mirror/smarthttp"},
	"mirror/cache":     {"mirror/gitproc", "mirror/smarthttp"},
	"mirror/gitproc":   {},
	"mirror/follow":    {"mirror/cache"},
	"mirror/smarthttp": {},
	"podapi":           {"podapi"},
	"podapi/panel":     {},
	"podapi/chromium":  {},

	"podapi/command/wire": {},
	"sshd":                {},

	"pods":           {"pods/backend", "pods/devcontainer", "pods/egress", "pods/image", "pods/podfile", "pods/podman", "pods/usage", "pods/witness", "podapi"},
	"pods/audit":     {},
	"pods/backend":   {"pods/backend"},
	"pods/image":     {},
	"pods/podman":    {"pods/backend", "pods/podfile"},
	"pods/podfile":   {"pods/devcontainer", "pods/usage"},
	"pods/usage":     {},
	"pods/model":     {"pods/podfile", "pods/usage"},
	"pods/witness":   {"pods/model"},
	"pods/secret":    {"pods/podfile"},
	"pods/egress":    {"pods/redact"},
	"pods/gate":      {"pods/egress", "pods/podfile", "pods/model", "pods/redact", "pods/usage", "pods/witness"},
	"pods/shim":      {"podapi/command/wire", "pods/devcontainer", "pods/egress", "pods/image", "pods/podfile", "pods/relay"},
	"pods/redact":    {},
	"pods/relay":     {},
	"pods/tunnel":    {},
	"pods/saver":     {"pods/podfile", "pods/relay"},
	"pods/reconcile": {},

	"pods/devcontainer": {},
}

// heavy must never be linked into what runs inside pods.
var heavy = []string{
	"github.com/containers/", "go.podman.io/", "github.com/nektos/act", "k8s.io/",
	"github.com/spf13/", "github.com/go-git/", "codeberg.org/mvdkleijn/",
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps", "-tags", tags}, args...)...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var found []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		found = append(found, p)
	}
}

// rule finds the rule for a package by the longest listed prefix.
func rule(path string) (string, bool) {
	for p := path; ; {
		if _, ok := allowed[p]; ok {
			return p, true
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			return "", false
		}
		p = p[:i]
	}
}

func TestArrowsPointOneWay(t *testing.T) {
	for _, p := range list(t, "./...") {
		path, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours || path == "cmd" || strings.HasPrefix(path, "cmd/") {
			continue
		}
		r, ok := rule(path)
		if !ok {
			t.Errorf("package %s has no rule: add it to docs/architecture.md and here", path)
			continue
		}
		for _, i := range p.Imports {
			to, ours := strings.CutPrefix(i, module)
			if !ours {
				continue
			}
			if !mayImport(allowed[r], to) {
				t.Errorf("%s imports %s; it may import only %v", path, to, allowed[r])
			}
		}
	}
}

func mayImport(rules []string, to string) bool {
	for _, a := range rules {
		if to == a || strings.HasPrefix(to, a+"/") {
			return true
		}
	}
	return false
}

func TestThePodBinaryIsThin(t *testing.T) { linksNone(t, "./cmd/devaipod-pod", heavy) }

// Every push waits for it to start, some four times.
func TestTheBoxIsThin(t *testing.T) {
	linksNone(t, "./cmd/devaipod-box", append([]string{"net/http", "github.com/gin-gonic/"}, heavy...))
}

func linksNone(t *testing.T, program string, heavy []string) {
	for _, p := range list(t, program) {
		for _, dep := range p.Deps {
			for _, h := range heavy {
				if strings.HasPrefix(dep, h) {
					t.Errorf("%s links %s", program, dep)
				}
			}
		}
	}
}
