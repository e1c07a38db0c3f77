package podman_test

import (
	"testing"

	"codeberg.org/devaipod/devaipod/pods/podman"
)

// What podman 4.3.1 said once when another container of the same image ended in that
// moment, and what else may be missing when a container starts.
func TestWhichStartsAreTriedAgain(t *testing.T) {
	for text, want := range map[string]bool{
		`runc: runc create failed: unable to start container process: error during container init: error mounting "/g/overlay-containers/cd/userdata/overlay/17/merge" to rootfs at "/.devaipod": mount /g/merge:/.devaipod (via /proc/self/fd/6), data: lowerdir=/g/overlay/9e/merged:/g/overlay-containers/cd/userdata/overlay/17/lower: no such file or directory: OCI runtime attempted to invoke a command that was not found`: true,
		`runc: runc create failed: error mounting "/state/p/1" to rootfs at "/run/service": mount /state/p/1:/run/service (via /proc/self/fd/6), flags: 0x5001: no such file or directory`:                                                                                                                                                                                                                                          false,
		`exec: "sh": executable file not found in $PATH: no such file or directory`: false,
	} {
		if got := podman.Unmounted.MatchString(text); got != want {
			t.Errorf("%.80s…: %t", text, got)
		}
	}
}
