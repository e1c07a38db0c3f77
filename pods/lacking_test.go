package pods_test

import (
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

func TestWhatAHostCannotGiveIsNamed(t *testing.T) {
	all := []string{"cpuset", "cpu", "io", "memory", "pids"}
	for _, c := range []struct {
		name string
		host podman.Host
		want []string // a part of each sentence
	}{
		{"root on cgroup v2 gives all", podman.Host{Cgroups: "v2", Controllers: all, Storage: "overlay"}, nil},
		{"root on cgroup v1 gives all", podman.Host{Cgroups: "v1", Controllers: all, Storage: "overlay"}, nil},
		{"a user on cgroup v2 with delegation gives all", podman.Host{Rootless: true, Cgroups: "v2", Controllers: all, Storage: "overlay", Users: 65537}, nil},
		{
			"a user on cgroup v1", podman.Host{Rootless: true, Cgroups: "v1", Storage: "overlay", Users: 65537},
			[]string{"no memory limit: agent.memory", "no cpu limit: agent.cpus", "no process limit: ", "no stats, no pause: "},
		},
		{
			// Hybrid cgroups: what podman lists there is root's.
			"a user on cgroup v1 who sees controllers", podman.Host{Rootless: true, Cgroups: "v1", Controllers: all, Storage: "overlay", Users: 65537},
			[]string{"boot with cgroup v2", "boot with cgroup v2", "boot with cgroup v2", "no stats"},
		},
		{
			"a user on cgroup v2 without a part of the delegation", podman.Host{Rootless: true, Cgroups: "v2", Controllers: []string{"cpu", "pids"}, Storage: "overlay", Users: 65537},
			[]string{"the cgroup controller memory is not delegated to this user"},
		},
		{
			"a kernel without the memory controller", podman.Host{Cgroups: "v1", Controllers: []string{"cpu", "pids"}, Storage: "overlay"},
			[]string{"this kernel does not offer the cgroup controller memory"},
		},
		{
			"a user without sub-uids", podman.Host{Rootless: true, Cgroups: "v2", Controllers: all, Storage: "overlay", Users: 1},
			[]string{"no users: a container gets 1 user ids and needs 1001"},
		},
		{"storage that copies", podman.Host{Cgroups: "v2", Controllers: all, Storage: "vfs"}, []string{"no shared layers: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := pods.Lacking(c.host)
			if len(got) != len(c.want) {
				t.Fatalf("%d sentences, want %d: %q", len(got), len(c.want), got)
			}
			for i, part := range c.want {
				if !strings.Contains(got[i], part) {
					t.Errorf("sentence %d is %q, want %q in it", i, got[i], part)
				}
			}
		})
	}
}
