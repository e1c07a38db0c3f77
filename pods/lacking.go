package pods

import (
	"fmt"
	"slices"

	"codeberg.org/devaipod/devaipod/pods/podman"
)

// LimitsMemory tells whether containers' memory can be limited on a host.
func LimitsMemory(h podman.Host) bool {
	return slices.Contains(h.Controllers, "memory") && !(h.Rootless && h.Cgroups == "v1")
}

// Lacking says what of a pod's box this host can't give, a sentence each, with
// its name first. Most of it is podman without root on cgroup v1.
func Lacking(h podman.Host) []string {
	var out []string
	why := func(controller string) (string, bool) {
		switch {
		case h.Rootless && h.Cgroups == "v1":
			return "podman without root has no limits on cgroup v1; boot with cgroup v2, or run as root", true
		case slices.Contains(h.Controllers, controller):
			return "", false
		case h.Rootless:
			return fmt.Sprintf("the cgroup controller %s is not delegated to this user; see Delegate= in systemd.resource-control(5)", controller), true
		}
		return fmt.Sprintf("this kernel does not offer the cgroup controller %s", controller), true
	}
	if reason, lacks := why("memory"); lacks {
		out = append(out, "no memory limit: agent.memory has no effect, an agent can use up this machine's memory ("+reason+")")
	}
	if reason, lacks := why("cpu"); lacks {
		out = append(out, "no cpu limit: agent.cpus and its like have no effect ("+reason+")")
	}
	if reason, lacks := why("pids"); lacks {
		out = append(out, "no process limit: an agent can start processes without end ("+reason+")")
	}
	if h.Rootless && h.Cgroups == "v1" {
		out = append(out, "no stats, no pause: podman stats and podman pause do not work (podman without root has neither on cgroup v1)")
	}
	if need := agentID + 1; h.Users > 0 && h.Users < need {
		out = append(out, fmt.Sprintf("no users: a container gets %d user ids and needs %d, no pod can start (give this user some with usermod --add-subuids 100000-165535 --add-subgids 100000-165535, then run podman system migrate)", h.Users, need))
	}
	if h.Storage == "vfs" {
		out = append(out, "no shared layers: podman stores images with vfs, which copies the whole image for each container; it is slow and fills the disk (install fuse-overlayfs and see containers-storage.conf(5))")
	}
	return out
}
