package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/pods"
)

// sshDomain is what the names of an instance's pods end in by SSH.
func (a *app) sshDomain() string { return sshDomain(a.cfg.Instance) }

func sshDomain(instance string) string { return "." + strings.ToLower(instance) }

// sshHost is the one name of a pod that no other has.
func (a *app) sshHost(k pods.Key) string { return sshHost(a.cfg.Instance, k) }

func sshHost(instance string, k pods.Key) string {
	names := k.Hosts()
	return names[len(names)-1] + sshDomain(instance)
}

var errNoSSHPod = errors.New("there is no pod")

// podByHost finds a pod by what SSH calls it: the whole name, or a shorter one that no
// other pod of this machine has.
func (a *app) podByHost(host string) (pods.Spec, error) {
	name, ours := strings.CutSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), a.sshDomain())
	if !ours {
		return pods.Spec{}, usagef("%q names no pod by SSH: such names end in %s", host, a.sshDomain())
	}
	specs, err := pods.Specs(a.cfg.StateDir)
	if err != nil {
		return pods.Spec{}, err
	}
	var found []pods.Spec
	var names []string
	for _, s := range specs {
		if slices.Contains(s.Hosts(), name) {
			found = append(found, s)
			names = append(names, a.sshHost(s.Key))
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return pods.Spec{}, usagef("%w %s: devaipod list tells which there are, an issue as issue-3.repo.owner%s, a pod of your own as name.repo.owner%s", errNoSSHPod, host, a.sshDomain(), a.sshDomain())
	}
	slices.Sort(names)
	return pods.Spec{}, usagef("%s may be any of %s", host, strings.Join(names, ", "))
}

// podBySSH finds a pod by any of its names: those of SSH, with or without their end, and
// those of every other command.
func (a *app) podBySSH(ctx context.Context, name string) (pods.Spec, error) {
	if !strings.ContainsAny(name, "/#@:") {
		host := name
		if !strings.HasSuffix(strings.ToLower(name), a.sshDomain()) {
			host += a.sshDomain()
		}
		spec, err := a.podByHost(host)
		if !errors.Is(err, errNoSSHPod) || strings.HasPrefix(name, "issue-") || strings.Contains(name, ".") {
			return spec, err
		}
	}
	k, err := a.podKey(ctx, name)
	if err != nil {
		return pods.Spec{}, err
	}
	specs, err := pods.Specs(a.cfg.StateDir)
	if err != nil {
		return pods.Spec{}, err
	}
	name = a.podName(ctx, k)
	at := slices.IndexFunc(specs, func(s pods.Spec) bool { return pods.Name(a.cfg.Instance, s.Key) == name })
	if at < 0 {
		return pods.Spec{}, &exitError{codeFailed, fmt.Errorf("%w of %s: devaipod list tells which there are", errNoSSHPod, k)}
	}
	return specs[at], nil
}
