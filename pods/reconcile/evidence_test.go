package reconcile_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// doneWorld is one whose agent says that it is done and that all tests passed.
func doneWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld()
	w.pass(t)
	w.commits = []reconcile.Commit{{SHA: "0123456789abcdef", Subject: "a"}, {SHA: "fedcba9876543210", Subject: "b"}}
	w.summary = reconcile.Summary{State: reconcile.AgentIdleWithWork, Since: w.now, Message: "All tests passed."}
	w.ci.State = reconcile.CINone
	return w
}

// has fails unless a text has all of parts.
func has(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}

func TestAPullRequestIsADraftWhileItsCommitIsChecked(t *testing.T) {
	w := doneWorld(t)
	w.check = reconcile.Check{State: reconcile.CheckRunning}
	v := w.pass(t)
	if v.State != reconcile.Checking || !w.text.Draft || w.state != "working" || len(w.asked) > 0 || len(w.noted) > 0 {
		t.Errorf("%+v, draft=%t, label %s, asked %v, noted %v", v, w.text.Draft, w.state, w.asked, w.noted)
	}
	has(t, w.said["status"], "its work is being checked", "`checking`", "runs the repository's checks on fedcba9876")
	if w.checked[len(w.checked)-1] != "fedcba9876543210" {
		t.Errorf("checked %v", w.checked)
	}
	if v.State.Waits() {
		t.Error("who waits for a person is told too early")
	}

	w.check = reconcile.Check{State: reconcile.CheckPassed, Commands: []reconcile.Ran{{Command: "make test", Seconds: 12}}}
	v = w.pass(t)
	if v.State != reconcile.Review || w.text.Draft || w.state != "review" || len(w.asked) != 1 || len(w.noted) != 1 {
		t.Errorf("%+v, draft=%t, label %s, asked %v, noted %v", v, w.text.Draft, w.state, w.asked, w.noted)
	}
	has(t, w.said["status"], "| checked | own run: passed; CI: none |")
	has(t, w.text.Body, "In the agent's own words:\n\n> All tests passed.\n", "on fedcba9876, in a fresh clone: **passed**", "`make test` exit code 0, 12 s", "**CI**: none")
	if ev := w.noted[0]; ev.Commit != "fedcba9876543210" || ev.Check.State != reconcile.CheckPassed || ev.Files != 1 || ev.Summary != "All tests passed." {
		t.Errorf("%+v", ev)
	}
}

// What has left draft stays out of it while nothing of the work has changed: when the
// pod's processes are started again, as after an upgrade, and when the same commit is
// checked once more, also one that left draft when no evidence was kept yet.
func TestAPullRequestThatIsReadyStaysSo(t *testing.T) {
	ready := func(t *testing.T) *world {
		t.Helper()
		w := doneWorld(t)
		w.check.State = reconcile.CheckPassed
		if w.pass(t); w.text.Draft || len(w.noted) != 1 {
			t.Fatalf("draft=%t, noted %v", w.text.Draft, w.noted)
		}
		return w
	}
	for name, tt := range map[string]struct {
		happens func(w *world)
		state   reconcile.State
		draft   bool
	}{
		"started again":                {func(w *world) { w.summary = reconcile.Summary{State: reconcile.AgentStarting} }, reconcile.Starting, false},
		"not up yet":                   {func(w *world) { w.sumErr, w.pod.Started = errors.New("no answer"), w.now }, reconcile.Starting, false},
		"checked again":                {func(w *world) { w.check.State = reconcile.CheckRunning }, reconcile.Review, false},
		"checked for the first time":   {func(w *world) { w.check.State, w.noted = reconcile.CheckRunning, nil }, reconcile.Review, false},
		"another commit":               {func(w *world) { w.check.State, w.commits = reconcile.CheckRunning, w.commits[:1] }, reconcile.Checking, true},
		"another commit, of old times": {func(w *world) { w.check.State, w.noted[0].Commit = reconcile.CheckRunning, "0123" }, reconcile.Checking, true},
		"at work again":                {func(w *world) { w.summary = reconcile.Summary{State: reconcile.AgentWorking} }, reconcile.Working, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := ready(t)
			tt.happens(w)
			before := len(w.noted)
			if v := w.pass(t); v.State != tt.state || w.text.Draft != tt.draft || len(w.noted) != before || len(w.asked) != 1 {
				t.Errorf("%+v, draft=%t, noted %v, asked %v", v, w.text.Draft, w.noted, w.asked)
			}
			w.summary, w.sumErr, w.check.State = reconcile.Summary{State: reconcile.AgentIdleWithWork, Since: w.now}, nil, reconcile.CheckPassed
			if v := w.pass(t); v.State != reconcile.Review || w.text.Draft || w.noted[len(w.noted)-1].Commit != w.commits[len(w.commits)-1].SHA {
				t.Errorf("in the end %+v, draft=%t, noted %v", v, w.text.Draft, w.noted)
			}
		})
	}
}

func TestAResultIsToldWhateverTheAgentSays(t *testing.T) {
	one, zero := 1, 0
	for name, tt := range map[string]struct {
		check reconcile.Check
		seen  reconcile.Seen
		ci    reconcile.CI
		want  []string
	}{
		"our own run failed": {check: reconcile.Check{State: reconcile.CheckFailed, Commands: []reconcile.Ran{{Command: "make lint", Exit: 0}, {Command: "make test", Exit: 2, Tail: "--- FAIL: TestX\nFAIL"}}},
			want: []string{"in a fresh clone: **failed**", "`make test` **failed**: exit code 2", "  ```\n  --- FAIL: TestX\n  FAIL\n  ```", "`make lint` exit code 0"}},
		"it was late": {check: reconcile.Check{State: reconcile.CheckLate, Commands: []reconcile.Ran{{Command: "make test", Exit: -1, Late: true, Why: "it had not ended"}}},
			want: []string{"**did not end in time**", "**failed**: `it had not ended`"}},
		"it could not be made": {check: reconcile.Check{State: reconcile.CheckBroken, Why: "no image"}, want: []string{"**could not be made**", "> no image", "Nothing of this was checked"}},
		"its setup failed":     {check: reconcile.Check{State: reconcile.CheckPassed, Setup: "setup 1: no network", Commands: []reconcile.Ran{{Command: "true"}}}, want: []string{"**passed**", "> setup 1: no network"}},
		"the gate saw it": {seen: reconcile.Seen{Others: 4, Checks: []reconcile.Command{{Command: "go test", Told: true, Exit: &one, Tail: "FAIL"}, {Command: "go vet", Told: true, Exit: &zero}, {Command: "pytest"}, {Command: "tox", Told: true, Tail: "ok"}}},
			want: []string{"(and 4 other commands)", "`go test`: **failed**, exit code 1\n\n  ```\n  FAIL\n  ```", "`go vet`: exit code 0\n", "`pytest`: no result was told", "`tox`: no exit code was told; its last lines:\n\n  ```\n  ok\n  ```", "none, the repository names no checks"}},
		"CI failed":   {ci: reconcile.CI{State: reconcile.CIFailure, Jobs: []reconcile.CIJob{{Name: "build / test", State: reconcile.CIFailure, URL: "https://ci.example.org/1", Person: "it was cancelled"}, {Name: "x", State: reconcile.CISuccess, URL: "javascript:alert(1)"}}}, want: []string{"**CI**: **failure**", "- `build / test` failure: `it was cancelled`\n  `https://ci.example.org/1`", "- `x` success\n"}},
		"nothing was": {want: []string{"of 0 commands that the model asked for, none", "**Nothing of this was checked by anything but the agent's own word.**"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := doneWorld(t)
			w.check, w.seen, w.ci = tt.check, tt.seen, tt.ci
			if v := w.pass(t); v.State != reconcile.Review || w.text.Draft {
				t.Errorf("%+v, draft=%t", v, w.text.Draft)
			}
			has(t, w.text.Body, tt.want...)
			if strings.Contains(w.text.Body, "javascript:") {
				t.Error(w.text.Body)
			}
		})
	}
}

// Somebody is faster than we are: what they have merged is not opened once more.
func TestAPullRequestThatIsMergedMeanwhileIsNotOpenedAgain(t *testing.T) {
	w := doneWorld(t)
	w.check.State = reconcile.CheckPassed
	w.checking = func() {
		w.set(func() { w.pull = &reconcile.Pull{Number: 4, Merged: true, ClosedAt: w.now} })
	}
	w.pass(t)
	if w.opened != 1 || !w.pull.Merged {
		t.Errorf("opened %d, %+v", w.opened, w.pull)
	}
	w.checking = nil
	if v := w.pass(t); v.State != reconcile.Done || w.opened != 1 || w.removed != 1 {
		t.Errorf("%+v, opened %d, removed %d", v, w.opened, w.removed)
	}
}

// With the merge the branch has nothing any more that the base lacks: that is no agent that
// ended without a commit.
func TestAPullRequestThatIsMergedDuringALookIsNoAgentWithoutWork(t *testing.T) {
	w := doneWorld(t)
	w.check.State = reconcile.CheckPassed
	w.pass(t)
	w.aheading = func() {
		w.set(func() { w.pull, w.commits = &reconcile.Pull{Number: 4, Merged: true, ClosedAt: w.now}, nil })
	}
	if v := w.pass(t); v.State != reconcile.Done || w.removed != 1 {
		t.Errorf("%+v, removed %d", v, w.removed)
	}
}

// What the agent says may look as if we had said it, and is a quotation.
func TestAnAgentsWordsAreQuoted(t *testing.T) {
	w := doneWorld(t)
	w.summary.Message = "Done.\n\nHow it was checked\n---\n\n**devaipod's own run**: **passed**\r\n\n```\n"
	w.check = reconcile.Check{State: reconcile.CheckFailed, Commands: []reconcile.Ran{{Command: "make test", Exit: 1}}}
	w.pass(t)
	has(t, w.text.Body, "\n> How it was checked\n> ---\n> \n> **devaipod's own run**: **passed**\n> \n> ```\n\n## How it was checked\n\n**devaipod's own run** of ")
}

func TestTheEndOfAnOutputIsShown(t *testing.T) {
	w := doneWorld(t)
	w.check = reconcile.Check{State: reconcile.CheckFailed, Commands: []reconcile.Ran{{Command: "make test", Exit: 1, Tail: strings.Repeat("more\n", 400) + "the last line"}}}
	w.pass(t)
	has(t, w.text.Body, "  more\n  the last line\n  ```\n")
	if n := strings.Count(w.text.Body, "  more\n"); n < 100 || n > 200 {
		t.Errorf("%d lines", n)
	}
}

func TestCIThatIsPendingIsWaitedForButNotForEver(t *testing.T) {
	w := doneWorld(t)
	w.ci = reconcile.CI{State: reconcile.CIPending, Jobs: []reconcile.CIJob{{Name: "build", State: reconcile.CIPending}}}
	c := w.config()
	c.CIWait, c.Watch = 30*time.Minute, 5*time.Millisecond
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			w.mu.Lock()
			yes := ok()
			w.mu.Unlock()
			if yes {
				return
			}
		}
		t.Fatalf("never %s", what)
	}
	w.with(t, c, func(*reconcile.Loop) {
		w.set(func() {
			if w.state != "working" || !w.text.Draft {
				t.Errorf("label %s, draft=%t", w.state, w.text.Draft)
			}
			has(t, w.said["status"], "waits for CI on fedcba9876")
			w.now = w.now.Add(29 * time.Minute)
		})
		w.set(func() { w.calls = 0 })
		until("asked again", func() bool { return w.calls > 3 })
		w.set(func() {
			if !w.text.Draft {
				t.Error("no draft any more")
			}
			w.now = w.now.Add(2 * time.Minute)
		})
		until("ready", func() bool { return !w.text.Draft && w.state == "review" })
		w.set(func() {
			has(t, w.text.Body, "**CI**: still pending when this was written", "- `build` pending")
			// What comes of it later is told too.
			w.ci.State, w.now = reconcile.CISuccess, w.now.Add(2*time.Minute)
		})
		until("told of CI's end", func() bool { return strings.Contains(w.text.Body, "**CI**: success") })
	})
}

func TestWhatEvidenceHoldsIsHarmless(t *testing.T) {
	bad := "```\n````\n@ada Closes #1 ![x](http://evil) <!-- x --> | `code`\n" + strings.Repeat("é", 10_000)
	w := doneWorld(t)
	w.check = reconcile.Check{State: reconcile.CheckFailed, Setup: bad}
	for range 100 {
		w.check.Commands = append(w.check.Commands, reconcile.Ran{Command: bad, Exit: 1, Tail: bad}, reconcile.Ran{Command: bad, Exit: -1, Why: bad})
		w.seen.Checks = append(w.seen.Checks, reconcile.Command{Command: bad, Told: true, Tail: bad})
		w.ci.Jobs = append(w.ci.Jobs, reconcile.CIJob{Name: bad, URL: "http://x/" + bad})
	}
	w.pass(t)
	_, body, _ := strings.Cut(w.text.Body, "## How it was checked")
	body, _, _ = strings.Cut(body, "## Commits")
	if len(body) < 1000 || len(body) > 200_000 {
		t.Errorf("%d bytes", len(body))
	}
	for line := range strings.Lines(body) {
		// Code, as names and commands are shown, is as it was; all else is harmless.
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "- ") || strings.HasPrefix(line, "`http") {
			if n := strings.Count(line, "`"); n%2 != 0 {
				t.Errorf("code that does not end: %s", line)
			}
		} else if strings.ContainsAny(line, "@#") {
			t.Errorf("it can do harm: %s", line)
		}
	}
	if !strings.Contains(body, "  `````\n") {
		t.Error("its own fence ends the code")
	}
}
