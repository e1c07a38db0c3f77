package egress_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Through shim and gate, the bytes of a tunnel are in no process's memory
// (splice(2)), either way.
func TestTheBytesOfATunnelStayInTheKernel(t *testing.T) {
	origin := startOrigin(t)
	w, shim, gate := inPod(t, origin)
	c := w.open(t, clientHello(t, &tls.Config{ServerName: benchHost}))
	defer c.Close()
	say(c, "e")
	const size = 64 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, io.LimitReader(zeros{}, size))
		sent <- err
	}()
	before := copied(t, shim) + copied(t, gate)
	if n, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Fatal(n, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	// There and back are two times as much, and reads and writes would both count it.
	if n := copied(t, shim) + copied(t, gate) - before; n > size/4 {
		t.Errorf("shim and gate have copied %d MB of %d", n>>20, 2*size>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// copied is what a process has read and written so far (proc(5), io).
func copied(t *testing.T, cmd *exec.Cmd) (sum int64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if name, rest, _ := strings.Cut(lines.Text(), ":"); name == "rchar" || name == "wchar" {
			var n int64
			if _, err := fmt.Sscan(rest, &n); err != nil {
				t.Fatal(err)
			}
			sum, seen = sum+n, seen+1
		}
	}
	if seen != 2 {
		t.Fatalf("%s", text)
	}
	return sum
}
