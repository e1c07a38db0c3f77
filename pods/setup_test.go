package pods_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

func specOf(t *testing.T, text string) pods.Spec {
	t.Helper()
	place := pods.Place("devaipod", pods.Key{Owner: "ann", Repo: "app", Issue: 3})
	place.File = "api/.devcontainer.json"
	dev, err := devcontainer.Parse([]byte(text), place)
	if err != nil {
		t.Fatal(err)
	}
	return pods.Spec{Dev: *dev, Recipe: pods.Recipe{
		Env: map[string]string{"FLAVOUR": "small", "HOME": "/evil"}, Sparse: []string{"api"}, Within: time.Minute,
		Dotfiles: &podfile.Dotfiles{URL: "https://x.example.org/dots"},
	}}
}

func setUp(t *testing.T, s pods.Spec, role string) (map[string]string, podfile.Setup) {
	t.Helper()
	c := backend.Container{Env: map[string]string{"HOME": "/home/agent", "LANG": "C"}}
	if err := s.SetUp(&c, role); err != nil {
		t.Fatal(err)
	}
	setup, err := podfile.ParseSetup(c.Env[podfile.EnvSetup])
	if err != nil {
		t.Fatal(err)
	}
	return c.Env, setup
}

func TestEachContainerIsSetUpAsItIsFor(t *testing.T) {
	s := specOf(t, `{
		"containerEnv": {"A": "a", "LANG": "de", "HTTPS_PROXY": "http://evil", "HOME": "/x"},
		"remoteEnv": {"B": "b"}, "waitFor": "onCreateCommand",
		"onCreateCommand": "one", "postStartCommand": "start", "postAttachCommand": {"x": "attach"},
		"customizations": {"devaipod": {"agent": {"lifecycle": ["postStartCommand"], "setup": ["s1", "s2"], "required": true}}},
	}`)
	names := func(setup podfile.Setup) (out []string) {
		for _, st := range setup.Stages {
			out = append(out, st.Name)
		}
		return out
	}
	env, setup := setUp(t, s, pods.RoleWorkspace)
	if env["A"] != "a" || env["LANG"] != "de" || env["HOME"] != "/home/agent" || env["HTTPS_PROXY"] != "" || env["FLAVOUR"] != "" {
		t.Errorf("the workspace has %q", env)
	}
	if !slices.Equal(names(setup), []string{"onCreateCommand", "postStartCommand"}) || len(setup.Attach) != 1 || setup.Dotfiles == nil || fmt.Sprint(setup.Sparse) != "[api]" ||
		setup.Dir != "/workspace/repo/api" || setup.Env["B"] != "b" || setup.WaitFor != "onCreateCommand" || setup.Required || setup.Within != time.Minute {
		t.Errorf("the workspace: %+v", setup)
	}
	env, setup = setUp(t, s, pods.RoleAgent)
	if env["A"] != "a" || env["FLAVOUR"] != "small" || env["HOME"] != "/home/agent" {
		t.Errorf("the agent has %q", env)
	}
	if !slices.Equal(names(setup), []string{"postStartCommand", "setup 1", "setup 2"}) || len(setup.Attach) != 0 || setup.Dotfiles != nil || len(setup.Sparse) != 0 || !setup.Required {
		t.Errorf("the agent: %+v", setup)
	}
	if got := s.SetupWithin(); got != 3*time.Minute {
		t.Errorf("it is waited for %s", got)
	}
}

func TestAPodOfNoDevcontainerIsAsItWas(t *testing.T) {
	env, _ := setUp(t, pods.Spec{}, pods.RoleAgent)
	if len(env) != 2 || (pods.Spec{}).SetupWithin() != 0 {
		t.Errorf("%q", env)
	}
}

func TestASetupThatNoEnvironmentCanHoldIsAnError(t *testing.T) {
	s := pods.Spec{}
	for range 10 {
		s.Dev.Lifecycle.Stages = append(s.Dev.Lifecycle.Stages, devcontainer.Stage{Name: devcontainer.OnCreate, Commands: []devcontainer.Command{{Shell: strings.Repeat("\x01", 4000)}}})
	}
	if err := s.SetUp(&backend.Container{Env: map[string]string{}}, pods.RoleWorkspace); err == nil || !strings.Contains(err.Error(), "want at most 122880") {
		t.Errorf("%v", err)
	}
}

func TestMountsAreTheWorkspacesAlone(t *testing.T) {
	s := specOf(t, `{"mounts": ["source=a,target=/cache,readonly", "type=tmpfs,target=/scratch,tmpfs-size=99999999999999", "source=b,target=/home/dev", "source=c,target=/tmp/x", "source=d,target=/home/agent"]}`)
	c := backend.Container{Env: map[string]string{"HOME": "/home/dev"}}
	if err := s.SetUp(&c, pods.RoleWorkspace); err != nil {
		t.Fatal(err)
	}
	// Its home is on a volume already; what is the pod's stays that.
	if len(c.Mounts) != 2 || !strings.HasPrefix(c.Mounts[0].Source, "pod-mount-a-") || !c.Mounts[0].ReadOnly || c.Mounts[0].Kind != backend.VolumeMount ||
		c.Mounts[1] != (backend.Mount{Kind: backend.TmpfsMount, Target: "/scratch", Size: 2 << 30}) {
		t.Errorf("%+v", c.Mounts)
	}
	c.Mounts = nil
	if err := s.SetUp(&c, pods.RoleAgent); err != nil || len(c.Mounts) != 0 {
		t.Errorf("the agent's: %+v, %v", c.Mounts, err)
	}
}
