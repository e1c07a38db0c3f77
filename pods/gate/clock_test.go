package gate_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unsafe"

	"codeberg.org/devaipod/devaipod/pods/gate"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

// jumping is a clock that somebody sets between any two looks at it, by up to ten
// hours, ahead or back; what is monotonic in it goes on.
func jumping() time.Time {
	now := time.Now()
	jumped := now
	// Package time has no way to make one: the seconds lie above 30 bits of
	// nanoseconds.
	by := rand.Int64N(20*3600) - 10*3600
	*(*uint64)(unsafe.Pointer(&jumped)) += uint64(by) << 30
	if jumped.Sub(now) != 0 || jumped.Round(0).Sub(now.Round(0)) != time.Duration(by)*time.Second {
		panic(fmt.Sprintf("%v is not %v, set by %d s", jumped, now, by))
	}
	return jumped
}

// onJumpingClock is a place whose gate lives by it.
func onJumpingClock(t *testing.T, model http.HandlerFunc) *place {
	t.Helper()
	p := newPlace(t, podfile.APIOpenAI, model)
	p.config.Now = jumping
	var err error
	if p.gate, err = gate.New(p.config); err != nil {
		t.Fatal(err)
	}
	p.agent = httptest.NewServer(p.gate.Handler(gate.Agent))
	t.Cleanup(p.agent.Close)
	return p
}

func TestAClockThatJumps(t *testing.T) {
	asked := 0
	p := onJumpingClock(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked%2 == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_ = http.NewResponseController(w).Flush()
		time.Sleep(10 * time.Millisecond)
		fmt.Fprint(w, answered)
	})
	dir := t.TempDir()
	journal, err := usage.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	p.config.Usage = journal
	agent := doorOf(t, p.config)
	p.policy.Budget = usage.Budget{Time: 30 * time.Minute, Tokens: 1e9}
	const requests = 20
	began := time.Now()
	for range requests {
		if resp, body := ask(t, agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 200 || body != answered {
			t.Fatal(resp.Status, body)
		}
	}
	took := time.Since(began)
	used, underWay := journal.Totals()
	if used.Requests != requests || used.Time < requests*10*time.Millisecond || used.Time > took || underWay.Requests != 0 || asked != 2*requests {
		t.Errorf("used %+v, under way %+v, in %s and %d requests", used, underWay, took, asked)
	}
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	if journal, err = usage.Open(dir); err != nil {
		t.Fatal(err)
	}
	defer journal.Close() //nolint:errcheck // it was only read
	if again, _ := journal.Totals(); again != used {
		t.Errorf("read again: %+v, was %+v", again, used)
	}
}

// A clock that jumps ahead brings no turn forward, and one that jumps back puts
// none off.
func TestTheRateOfRequestsOnAClockThatJumps(t *testing.T) {
	second := func(perMinute int, within time.Duration) error {
		p := onJumpingClock(t, says(answered))
		p.policy.Rate = perMinute
		if resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 200 {
			t.Fatal(resp.Status, body)
		}
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "POST", p.agent.URL+chatRoute, strings.NewReader(goodChat))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+agentTok)
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	for range 8 { // half of all jumps are ahead
		if second(4, 100*time.Millisecond) == nil {
			t.Error("a turn that is in 15 seconds has come at once")
		}
	}
	if err := second(600, 10*time.Second); err != nil {
		t.Errorf("a turn that is in 100 ms has not come: %v", err)
	}
}

// What the agent was kept from is told whatever the clock says of when.
func TestBlockedHostsOnAClockThatJumps(t *testing.T) {
	o := newOutside(t)
	cfg := o.config
	cfg.Now = jumping
	g, err := gate.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	agent := httptest.NewServer(g.Handler(gate.Agent))
	defer agent.Close()
	if resp, body := ask(t, agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 200 {
		t.Fatal(resp.Status, body)
	}
	for i := range 20 {
		o.get(agent, agentTok, fmt.Sprintf("https://h%d.example.org/", i), nil)
		if blocked := g.Blocked(); len(blocked) != i+1 || blocked[0].Host != fmt.Sprintf("h%d.example.org", i) {
			t.Fatalf("after %d: %+v", i+1, blocked)
		}
	}
}
