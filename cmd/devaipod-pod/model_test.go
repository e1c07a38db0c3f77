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
		say   []string
		stall time.Duration
	}{
		"model-error": {podapi.CauseRefused, []string{"401", "the scripted model refuses"}, 0},
		"model-429":   {podapi.CauseLimited, []string{"429"}, 0},
		"model-500":   {podapi.CauseModel, []string{"500"}, 0},
		"half":        {podapi.CauseModel, []string{"broke off"}, 0},
		"garbage":     {podapi.CauseError, nil, 0},
		"hang":        {podapi.CauseStalled, []string{"no progress for 20s"}, 20 * time.Second},
	} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			p := newPodThatStalls(t, "scenario: "+scenario, tt.stall)
			p.startShim()
			p.startControl()
			sum := p.wait("failed", func(s podapi.Summary) bool { return s.State == podapi.Failed || done(s) })
			if sum.State != podapi.Failed || sum.Cause != tt.cause {
				t.Errorf("%+v", sum)
			}
			for _, say := range tt.say {
				if !strings.Contains(sum.Error, say) {
					t.Errorf("%q is not in %q", say, sum.Error)
				}
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
