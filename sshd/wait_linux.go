package sshd

import "golang.org/x/sys/unix"

// waitNoReap waits for the end of a child and leaves it to be waited for: until then
// its number is nobody else's.
func waitNoReap(pid int) (unix.Siginfo, error) {
	var info unix.Siginfo
	for {
		if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return info, err
		}
	}
}
