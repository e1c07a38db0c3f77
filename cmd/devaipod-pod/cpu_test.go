package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod-pod"
	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// cpuUsed stands in for the service and podman: it adds up what the kernel says of the
// processes in the agent's PID namespace (proc(5)).
func (p *pod) cpuUsed(w http.ResponseWriter, _ *http.Request) {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.box.Load()))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	all, _ := filepath.Glob("/proc/[0-9]*")
	ticks := int64(0)
	for _, dir := range all {
		if its, err := os.Readlink(dir + "/ns/pid"); err != nil || its != ns {
			continue
		}
		text, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		for _, n := range f[11:15] { // its own and its children's
			var t int64
			_, _ = fmt.Sscan(n, &t) // the kernel's
			ticks += t
		}
	}
	_ = json.NewEncoder(w).Encode(podfile.CPU{Used: time.Duration(ticks) * time.Second / 100})
}

// The real opencode at a tool that says nothing for longer than it may stall: one that
// computes is let be, one that does nothing is broken off, and the agent told so. The
// wall clock jumps meanwhile.
func TestAToolThatComputesIsNoStall(t *testing.T) {
	for scenario, tt := range map[string]struct {
		jumps  time.Duration
		stalls bool
		want   string
	}{
		"compute": {time.Hour, false, "The tool said: computed"},
		"sleep":   {-time.Hour, true, "aborted"},
	} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			p := newPodThatStalls(t, "scenario: "+scenario, 8*time.Second)
			p.startShim()
			j := jumping{p, p.startControl(), tt.jumps}
			sum := j.wait("over", func(s podapi.Summary) bool { return done(s) || s.State == podapi.Failed })
			if !strings.Contains(sum.Message, tt.want) {
				t.Errorf("%+v", sum)
			}
			if told := strings.Contains(p.events(), "no progress for 8s"); told != tt.stalls {
				t.Errorf("a stall: %v, want %v; events: %s", told, tt.stalls, p.events())
			}
			j.sawJumps()
		})
	}
}

// What a meter takes for computing, by what it is answered.
func TestAMeter(t *testing.T) {
	start := time.Now()
	used := func(cores float64) func() ([]byte, error) {
		return func() ([]byte, error) {
			return json.Marshal(podfile.CPU{Used: time.Second + time.Duration(cores*float64(time.Since(start)))})
		}
	}
	for name, tt := range map[string]struct {
		answer func() ([]byte, error)
		state  podapi.State
		want   bool
	}{
		"half a core":                      {used(0.5), podapi.Working, true},
		"a tenth of one":                   {used(0.1), podapi.Working, false},
		"half a core, and it asks":         {used(0.5), podapi.Asking, false},
		"what podman does not tell":        {func() ([]byte, error) { return nil, nil }, podapi.Working, false},
		"none, for the service is not up":  {func() ([]byte, error) { return nil, errors.New("no service") }, podapi.Working, true},
		"less than before: it began again": {used(-0.5), podapi.Working, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			looks := 0
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			computes := main.Meter(ctx, 50*time.Millisecond, func() podapi.State {
				if looks++; looks == 6 {
					cancel()
				}
				return tt.state
			}, tt.answer)
			if got := computes > 0; got != tt.want {
				t.Errorf("it computes: %v", got)
			}
		})
	}
}
