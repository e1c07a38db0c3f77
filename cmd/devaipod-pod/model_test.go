package main_test

import (
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

// What a model can do wrong, with the real opencode between it and us.
func TestAModelThatFailsIsTold(t *testing.T) {
	t.Parallel()
	for scenario, tt := range map[string]struct {
		cause podapi.Cause
		say   string
		stall time.Duration
	}{
		"model-error": {podapi.CauseRefused, "401", 0},
		"model-429":   {podapi.CauseLimited, "429", 0},
		"model-500":   {podapi.CauseModel, "500", 0},
		"half":        {podapi.CauseModel, "broke off", 0},
		"garbage":     {podapi.CauseError, "", 0},
		"hang":        {podapi.CauseStalled, "no progress for 20s", 20 * time.Second},
	} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			p := newPodThatStalls(t, "scenario: "+scenario, tt.stall)
			p.startShim()
			p.startControl()
			sum := p.wait("failed", func(s podapi.Summary) bool { return s.State == podapi.Failed || done(s) })
			if sum.State != podapi.Failed || sum.Cause != tt.cause || !strings.Contains(sum.Error, tt.say) {
				t.Errorf("%+v", sum)
			}
		})
	}
}

func TestAStalledAgentGoesOnWhenItIsNudged(t *testing.T) {
	t.Parallel()
	p := newPodThatStalls(t, "nonce: "+nonce+"\nscenario: hang-once", 20*time.Second)
	p.startShim()
	p.startControl()
	p.wait("done", done)
	p.mustHoldTheProof()
	if events := p.events(); strings.Count(events, "breaking off") != 1 {
		t.Errorf("events: %s", events)
	}
}
