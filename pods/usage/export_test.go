package usage

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Dir is where j is.
func Dir(j *Journal) string { return filepath.Dir(j.path) }

// Limit leaves room for n more bytes of j's file, as a full disk does; 0 for no
// limit.
func Limit(t *testing.T, j *Journal, n int64) {
	t.Helper()
	limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if n > 0 {
		limit.Cur = uint64(j.size + n)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
}
