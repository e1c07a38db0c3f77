package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containers/podman/v5/pkg/specgen"
)

// The job's containers have one cgroup above theirs, with the limits of all of them together.
// It is that of a pod of podman's, so it is made right whatever makes cgroups on this
// machine. No container joins the pod: podman wants the holder in it then, and a job that
// has used all up would end it. The pod lives no longer than the job, so that podman
// before 4.6 forgets its cgroup after a reboot does no harm.
//
// Podman sets limits only on a pod with an infra container. Nothing starts that one.

const (
	groupName = "job"   // after the prefix, as holderName
	infraName = "infra" // the same
	// groupSpare is how many processes the group may have above the limit: each container
	// and each exec is watched by one of podman's, which the cgroup counts.
	groupSpare = 64
)

// group makes the pod, unless podman could give it no limits.
func (s *Sandbox) group(ctx context.Context) error {
	pids := s.cfg.Pids
	if pids > 0 {
		pids += groupSpare
	}
	limits := s.limits(s.cfg.Memory, s.cfg.CPUs, pids)
	if limits.Memory == nil && limits.CPU == nil && limits.Pids == nil {
		return nil
	}
	share := true
	g := specgen.PodSpecGenerator{}
	g.Name, g.Labels, g.ShareParent, g.SharedNamespaces = s.prefix(s.task)+groupName, s.labels(s.task), &share, []string{}
	g.InfraName, g.InfraImage, g.InfraCommand = s.prefix(s.task)+infraName, s.cfg.Tools, []string{"/devaipod-pod"}
	g.NetNS = specgen.Namespace{NSMode: specgen.NoNetwork}
	g.ResourceLimits = limits
	body, err := json.Marshal(g)
	if err != nil {
		return err
	}
	resp, err := s.ask(ctx, http.MethodPost, libpod+"/pods/create", "", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var made struct{ ID string }
	if err := readAnswer(resp, &made); err != nil {
		return fmt.Errorf("making the job's group: %w", err)
	}
	var pod struct{ CgroupPath string }
	if err := s.get(ctx, libpod+"/pods/"+made.ID+"/json", "", &pod); err != nil {
		return fmt.Errorf("looking at the job's group: %w", err)
	}
	s.cgroup = pod.CgroupPath
	return nil
}

// endWatchers ends podman's processes that have watched the job's execs: they stay for five
// minutes, to tell how those ended. Podman, where it makes cgroups itself, waits three seconds for
// them when it removes the pod, and then does the same. What can't be read here is left to it.
func (s *Sandboxes) endWatchers(ctx context.Context, task int64) {
	var pod struct{ CgroupPath string }
	if err := s.get(ctx, libpod+"/pods/"+s.prefix(task)+groupName+"/json", "", &pod); err != nil || pod.CgroupPath == "" {
		return
	}
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} { // v1, v2
		all, err := os.ReadFile(filepath.Join(root, pod.CgroupPath, "conmon", "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, text := range strings.Fields(string(all)) {
			if pid, err := strconv.Atoi(text); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended by now
			}
		}
	}
}
