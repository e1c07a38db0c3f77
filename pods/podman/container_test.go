package podman_test

import (
	"errors"
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

// What podman 4.3.1 said once of a pod that it removed by force while a container of it took
// the second that it had to end.
func TestARemovalInTheMomentOfAnEndIsTriedAgain(t *testing.T) {
	said := errors.New(`removing container a08201c9 from pod 0591ea65: cannot remove container a08201c9 as it could not be stopped: sending SIGKILL to container a08201c9: container state improper: stopped`)
	for _, tt := range []struct {
		what         string
		fails, tries int
		err          error
	}{
		{"passes", 2, 3, said},
		{"another error", 99, 1, errors.New("container state improper")},
		{"does not pass", 99, 20, said},
	} {
		tried := 0
		err := podman.Again(t.Context(), podman.Ending, func() error {
			if tried++; tried <= tt.fails {
				return tt.err
			}
			return nil
		})
		if tried != tt.tries || (err == nil) != (tt.tries > tt.fails) {
			t.Errorf("%s: tried %d times: %v", tt.what, tried, err)
		}
	}
}
