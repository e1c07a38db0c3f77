// Package sandbox stands between what runs a job of a workflow and podman. Whatever
// the job asks of Docker goes through a filter, which decides; what asks it, and the
// workflow that it asks for, are hostile.
//
// [Sandboxes.Open] gives one job a [Sandbox]: a unix socket with as much of Docker's
// API as github.com/nektos/act uses, and a network namespace in which there is
// nothing but loopback. A container of ours, the holder, holds the namespace and
// listens at the ports of the door; all that the job connects to there arrives at
// [Sandbox.Door]. The job's containers join the namespace, so that its services are
// found on localhost and, through an /etc/hosts that they only read, by their names.
//
// # What the filter holds to
//
// A request is decoded into Docker's own types, and what goes on to podman is built
// anew of what is known to be harmless: nothing is passed through. What would change
// the meaning of a container by being left out (privileged, devices, paths of the
// host, namespaces of the host) is refused by name; what would not (published ports)
// is left out. Only containers, execs, volumes and networks that were made through
// this socket can be named. Networks are words: none is made.
//
// Each container has the capabilities that are in caps, no new privileges (so sudo
// does not work in a job; what needs root runs as root), the seccomp profile, and the
// limits, which hold for all of the job's containers together (group.go). Where podman
// can't limit (rootless on cgroup v1) there are ulimits instead: processes are then
// counted with all of the user's, and memory is not limited.
//
// A Dockerfile is run by [codeberg.org/devaipod/devaipod/ci/dockerfile] in containers of
// that kind, and never by podman's own build (build.go).
//
// # What is left
//
// All that is made carries two labels, the instance's and the task's ([LabelTask]).
// [Sandbox.Close] removes it, and [Sandboxes.Collect] what a kill has left.
package sandbox
