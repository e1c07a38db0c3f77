package sandbox

import "github.com/containers/podman/v5/pkg/specgen"

// Rewrite is what becomes of the body of a request to make a container.
func Rewrite(body []byte, network func(string) bool) (*specgen.SpecGenerator, error) {
	var req createRequest
	if err := decode(body, &req); err != nil {
		return nil, err
	}
	p, err := rewrite(req, rules{prefix: "pre-", memory: 1 << 30, cpus: 2, pids: 100, network: network})
	if err != nil {
		return nil, err
	}
	s := &Sandbox{Sandboxes: &Sandboxes{cfg: Config{Instance: "i", Seccomp: "/seccomp.json"}}, task: 1, dir: "/dir", holder: "the-holder"}
	s.host.Controllers = []string{"memory", "cpu", "pids"}
	s.finish(p, "n", "sha256:x", p.health)
	return p.spec, nil
}

// Caps are those that a container of a job may have.
var Caps = caps
