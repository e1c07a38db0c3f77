package compose_test

import (
	"reflect"
	"slices"
	"testing"

	"codeberg.org/devaipod/devaipod/compose"
)

func TestARunnerBesideTheForgeHasWhatItNeedsAndAPodmanOnlyIfOneIsGiven(t *testing.T) {
	c := compose.Config{Instance: "x", ToolsImage: "tools"}
	if s := compose.Forge(c); len(s.Pods) != 1 || len(s.Containers) != 2 {
		t.Errorf("without one: %+v", s)
	}
	c.Runner = compose.Runner{
		Image: "runner", Command: []string{"run"}, Port: 3000, Labels: []string{"a:host", "b:host"}, RelayDir: "/state/relay", TokenDir: "/state/registration",
	}
	s := compose.Forge(c)
	i := slices.IndexFunc(s.Containers, func(c compose.Container) bool { return c.Role == "runner" })
	if i < 1 || s.Containers[i-1].Name != compose.RunnerRelay("x") {
		t.Fatalf("%+v", s)
	}
	r := s.Containers[i]
	env := map[string]string{
		"GITEA_INSTANCE_URL": "http://127.0.0.1:3000", "GITEA_RUNNER_NAME": "x-runner", "GITEA_RUNNER_LABELS": "a:host,b:host",
		"GITEA_RUNNER_REGISTRATION_TOKEN_FILE": "/run/registration/token",
	}
	if !reflect.DeepEqual(r.Env, env) || len(r.Mounts) != 1 || !r.Mounts[0].ReadOnly || r.Mounts[0].Source != "/state/registration" || !r.NoNewPrivs {
		t.Errorf("%+v", r)
	}
	if relay := s.Containers[i-1]; r.Network != relay.Name || r.Pod+relay.Pod+relay.Network != "" || len(s.Pods) != 1 {
		t.Errorf("it has the network of %+v", relay) // which its jobs could not have, were it in a pod
	}
	c.Runner.Podman = "/run/user/1000/podman/podman.sock"
	r = compose.Forge(c).Containers[i]
	if m := r.Mounts[len(r.Mounts)-1]; m.Source != c.Runner.Podman || r.Env["DOCKER_HOST"] != "unix://"+m.Target || r.Env["GITEA_RUNNER_NETWORK"] != "container:x-runner-relay" {
		t.Errorf("%+v", r)
	}
	for _, c := range compose.Forge(c).Containers {
		if c.Labels["devaipod.instance"] != "x" || c.Labels["devaipod.role"] != c.Role {
			t.Errorf("%s has the labels %v", c.Name, c.Labels)
		}
	}
}
