package main_test

import (
	"bytes"
	"debug/elf"
	little "encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// jump moves the wall clock of one process, and no other's: what it reads of
// CLOCK_REALTIME is by d more than before, what it reads of CLOCK_MONOTONIC as ever. No
// namespace can do this (time_namespaces(7)); so it is done where a Go program reads
// its clocks, in the kernel's code that each process has mapped (vdso(7)).
func (c *process) jump(t *testing.T, d time.Duration) {
	t.Helper()
	c.jumped += d
	if err := moveClock(c.cmd.Process.Pid, c.jumped); err != nil {
		t.Fatalf("moving the clock of %v: %v", c.cmd.Args[1:], err)
	}
}

// realtime asks the kernel, adds what is behind it when the clock is CLOCK_REALTIME, 0,
// to its seconds, and returns.
var realtime = []byte{
	0xb8, 228, 0, 0, 0, // mov $SYS_clock_gettime, %eax
	0x0f, 0x05, // syscall
	0x85, 0xff, // test %edi, %edi
	0x75, 10, // jnz to the ret
	0x48, 0x8b, 0x0d, 6, 0, 0, 0, // mov 6(%rip), %rcx
	0x48, 0x01, 0x0e, // add %rcx, (%rsi)
	0xc3, 0x90, 0x90, // ret
}

func moveClock(pid int, d time.Duration) error {
	begin, size, err := vdso(pid)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	code := make([]byte, size)
	if _, err := mem.ReadAt(code, begin); err != nil {
		return err
	}
	image, err := elf.NewFile(bytes.NewReader(code))
	if err != nil {
		return err
	}
	names, err := image.DynamicSymbols()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(names, func(s elf.Symbol) bool { return s.Name == "__vdso_clock_gettime" })
	if i < 0 {
		return errors.New("the kernel's code has no clock_gettime")
	}
	entry, ours := int64(names[i].Value), size-64
	offset := little.LittleEndian.AppendUint64(nil, uint64(d/time.Second))
	if code[entry] == 0xe9 { // it jumps to ours already
		_, err = mem.WriteAt(offset, begin+ours+int64(len(realtime)))
		return err
	}
	if bytes.Trim(code[ours:], "\x00") != nil {
		return errors.New("there is no room behind the kernel's code")
	}
	jump := slices.Clone(code[entry : entry+8]) // written at once: others may be running it
	jump[0] = 0xe9
	little.LittleEndian.PutUint32(jump[1:], uint32(ours-entry-5))
	if _, err = mem.WriteAt(slices.Concat(realtime, offset), begin+ours); err == nil {
		_, err = mem.WriteAt(jump, begin+entry)
	}
	return err
}

// vdso tells where a process has it.
func vdso(pid int) (begin, size int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			_, err = fmt.Sscanf(line, "%x-%x", &begin, &size)
			return begin, size - begin, err
		}
	}
	return 0, 0, errors.Join(err, errors.New("it has no vdso"))
}

// jumping is a pod whose control has a clock that goes by d further with each look
// that the test takes.
type jumping struct {
	*pod
	control *process
	d       time.Duration
}

func (j jumping) wait(what string, ok func(podapi.Summary) bool) podapi.Summary {
	j.t.Helper()
	return j.pod.wait(what, func(s podapi.Summary) bool {
		j.control.jump(j.t, j.d)
		return ok(s)
	})
}

// stays looks for three seconds that the agent is at work, and only that.
func (j jumping) stays() {
	j.t.Helper()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		j.wait("there", func(s podapi.Summary) bool {
			if s.State != podapi.Working || s.Error != "" {
				j.t.Errorf("a clock that jumps by %s makes an agent at work %+v", j.d, s)
			}
			return true
		})
		time.Sleep(50 * time.Millisecond)
	}
}

// sawJumps fails a test whose control did not see what it is about.
func (j jumping) sawJumps() {
	j.t.Helper()
	req, err := http.NewRequestWithContext(j.t.Context(), http.MethodGet, "http://pod/healthz", nil)
	if err != nil {
		j.t.Fatal(err)
	}
	resp, err := j.client().Transport().RoundTrip(req)
	if err != nil {
		j.t.Fatal(err)
	}
	defer resp.Body.Close()
	its, err := http.ParseTime(resp.Header.Get("Date"))
	if off := its.Sub(time.Now().Add(j.control.jumped)); err != nil || j.control.jumped.Abs() < time.Hour || off.Abs() > 10*time.Minute {
		j.t.Errorf("control's clock was moved by %s, and is %s off that; %v", j.control.jumped, off, err)
	}
}

// writes is a plain program that does as the script's slow task.
var writes = []string{"sh", "-c", `
	echo committed:
	while ! test -e "$HOME/go"; do sleep 0.1; done
	printf %s "$(sed -n 's/^nonce: //p' "$1")" | sha256sum | cut -d' ' -f1 > NONCE.sha256
	git add -A && git commit -qm "Write down the proof" && git push -q origin HEAD:` + branch, "agent", "{prompt_file}"}

// The wall clock goes by hours, forth and back, while an agent works, while it ends,
// and while it stands still: whoever drives it notices what is so, and nothing else.
// opencode that stands still is in TestAToolThatComputesIsNoStall.
func TestAClockThatJumpsMisleadsNoDriver(t *testing.T) {
	for driver, commands := range map[string]struct{ works, sleeps []string }{
		podfile.DriverOpencode: {},
		podfile.DriverACP:      {opencodeACP, opencodeACP},
		podfile.DriverCommand:  {writes, []string{"sleep", "1000"}},
	} {
		start := func(t *testing.T, issue string, stall, d time.Duration, command []string) jumping {
			t.Parallel()
			p := newPodThatStalls(t, issue, stall)
			p.speaks(driver)
			p.startShim(command...)
			return jumping{p, p.startControl(), d}
		}
		t.Run(driver+" that works", func(t *testing.T) {
			j := start(t, "scenario: slow\nnonce: "+nonce, 0, 2*time.Hour, commands.works)
			j.wait("committed", func(s podapi.Summary) bool {
				requests := j.script.Requests()
				return len(requests) > 0 && strings.Contains(lastResult(requests[len(requests)-1].Calls), "committed:") || s.Activity == "committed:"
			})
			j.stays()
			j.d = -3 * time.Hour
			j.stays()
			j.script.Release("")
			if err := os.WriteFile(j.path("home/go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			j.wait("done", done)
			j.mustHoldTheProof()
			j.sawJumps()
			if events := j.events(); strings.Contains(events, `"type":"error"`) {
				t.Errorf("events: %s", events)
			}
		})
		if commands.sleeps == nil {
			continue
		}
		t.Run(driver+" that stands still", func(t *testing.T) {
			j := start(t, "scenario: sleep", 8*time.Second, -time.Hour, commands.sleeps)
			j.wait("noticed", func(s podapi.Summary) bool { return strings.Contains(j.events(), "no progress for 8s") })
			j.sawJumps()
		})
	}
}
