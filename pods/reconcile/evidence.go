package reconcile

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// A pull request is a draft until there is evidence of what its agent did, that is
// not the agent's own word: a run of the repository's checks by us, what the gate saw
// it run, and what CI says. What comes of the first two does not matter for that: it is
// told. While CI has failed it stays a draft; ci.go has what is done about that.

// CheckState is how far our own run of a repository's checks is.
type CheckState string

// The states of a run. What has not passed has failed, by a command's exit code, or by
// not ending in time; or it could not be run at all.
const (
	CheckNone    CheckState = "none" // the repository names no checks
	CheckRunning CheckState = "running"
	CheckPassed  CheckState = "passed"
	CheckFailed  CheckState = "failed"
	CheckLate    CheckState = "late"
	CheckBroken  CheckState = "broken"
)

// A Check is our own run of a repository's checks on a commit. Its texts are of what
// ran: hostile.
type Check struct {
	State    CheckState `json:"state"`
	Why      string     `json:"why,omitempty"`   // of one that could not be run
	Setup    string     `json:"setup,omitempty"` // what went wrong with the setup before it
	Commands []Ran      `json:"commands,omitempty"`
}

// A Ran is a command of a check.
type Ran struct {
	Command string  `json:"command"`
	Exit    int     `json:"exit"` // -1 when something else ended it
	Late    bool    `json:"late,omitempty"`
	Why     string  `json:"why,omitempty"`
	Tail    string  `json:"tail,omitempty"` // the last lines of its output
	Seconds float64 `json:"seconds"`
}

// Seen is what a pod's gate saw of the commands that its agent ran. All of it is the
// agent's and its model's: hostile.
type Seen struct {
	// Checks are the commands that check something, the oldest first.
	Checks []Command `json:"checks,omitempty"`
	Others int       `json:"others"` // how many there were besides
}

// A Command is one that the model asked for, and what the agent told it of that.
type Command struct {
	At      time.Time `json:"at"`
	Command string    `json:"command"`
	Told    bool      `json:"told"` // that there was a result
	Exit    *int      `json:"exit,omitempty"`
	Failed  bool      `json:"failed,omitempty"`
	Tail    string    `json:"tail,omitempty"`
}

// CIState is what the forge says of a commit's statuses together.
type CIState string

// The states of CI.
const (
	CINone    CIState = "none" // it has no status
	CIPending CIState = "pending"
	CISuccess CIState = "success"
	CIFailure CIState = "failure"
)

// CI is what CI says of a commit.
type CI struct {
	State CIState `json:"state"`
	Jobs  []CIJob `json:"jobs,omitempty"`
}

// A CIJob is one status of a commit. Whoever may push can set it, and what is known of the
// job behind it is of what ran: all of it is hostile.
type CIJob struct {
	Name  string  `json:"name"`
	State CIState `json:"state"`
	URL   string  `json:"url,omitempty"`
	// Run is the number of the job's run where it was run by us, 0 else: a later one has
	// a larger number.
	Run      int64  `json:"run,omitempty"`
	Workflow string `json:"workflow,omitempty"` // its file
	Step     string `json:"step,omitempty"`     // the first that failed
	Why      string `json:"why,omitempty"`      // it failed, where that is not a step's doing
	Tail     string `json:"-"`                  // the end of what it printed
	// Person says in words why a person has to see to it, and the agent can't: it is not
	// the commit's fault that it failed. "" for any other.
	Person string `json:"person,omitempty"`
}

// Evidence is what a pull request leaves draft with.
type Evidence struct {
	Commit    string `json:"commit"`               // the head that all of it is about
	MergeBase string `json:"merge_base,omitempty"` // where the branch left its base
	Pull      string `json:"pull_request"`
	Summary   string `json:"summary,omitempty"` // the agent's own words
	Check     Check  `json:"check"`
	Seen      Seen   `json:"seen"`
	CI        CI     `json:"ci"`
	Files     int    `json:"files"`
	Added     int    `json:"added"`
	Deleted   int    `json:"deleted"`
	Used      string `json:"used,omitempty"`
	// Draft says that the pull request is still one, and is about to be none.
	Draft bool `json:"-"`
}

const (
	// ciLook is how often CI is asked again while a draft waits for it.
	ciLook = 10 * time.Second
	// ciLater is how often it is after that, to tell its end.
	ciLater = time.Minute
)

// evidence gathers what there is of a commit that the agent is done with. While
// something is still to come the view's state becomes Checking.
func (l *Loop) evidence(ctx context.Context, pod Pod, v *View, pull Pull, sum Summary, commit string, changes []FileChange) (*Evidence, error) {
	ev := &Evidence{Commit: commit, MergeBase: pull.MergeBase, Pull: pull.URL, Summary: clip(sum.Message, 16<<10), Used: v.Used, Files: len(changes), Draft: pull.Draft}
	for _, c := range changes {
		ev.Added, ev.Deleted = ev.Added+c.Added, ev.Deleted+c.Deleted
	}
	var err error
	if ev.Check, err = l.cfg.Pods.Check(ctx, pod.Key, commit); err != nil {
		return ev, fmt.Errorf("checking %.10s of %s: %w", commit, v.Key, err)
	}
	if ev.Seen, err = l.cfg.Pods.Seen(ctx, pod.Key); err != nil {
		return ev, fmt.Errorf("reading what the agent of %s ran: %w", v.Key, err)
	}
	if ev.CI, err = l.cfg.Forge.CI(ctx, v.Key, commit); err != nil {
		return ev, fmt.Errorf("asking for the status of %.10s of %s: %w", commit, v.Key, err)
	}
	v.Checked = fmt.Sprintf("own run: %s; CI: %s", ev.Check.State, ev.CI.State)
	running := ev.Check.State == CheckRunning
	if running && !pull.Draft { // it is checked once more: nothing is kept of its check any more, or was ever
		left, err := l.cfg.Pods.Left(ctx, pod.Key)
		if err != nil {
			return ev, fmt.Errorf("reading with what pull request %d of %s left draft: %w", pull.Number, v.Key, err)
		}
		running = left != "" && left != commit
	}
	if running {
		v.State, v.Activity = Checking, "runs the repository's checks on "+short(commit)
		return ev, nil
	}
	return ev, l.judgeCI(ctx, pod, v, sum, ev)
}

// since is when an agent was done, as well as it is known.
func since(sum Summary, pod Pod) time.Time {
	if sum.Since.IsZero() {
		return pod.Started
	}
	return sum.Since
}

func short(commit string) string { return fmt.Sprintf("%.10s", commit) }

// lookAt has an issue looked at again at an Uptime, or before.
func (v *View) lookAt(t time.Duration) {
	if v.until == 0 || t < v.until {
		v.until = t
	}
}

// write tells how it was checked, the most certain first.
func (ev *Evidence) write(b *strings.Builder, harmless func(string) string) {
	b.WriteString("\n## How it was checked\n\n")
	ev.Check.write(b, ev.Commit, harmless)
	ev.Seen.write(b, harmless)
	ev.CI.write(b)
	ran := len(ev.Check.Commands) > 0 && ev.Check.State != CheckRunning
	if !ran && len(ev.Seen.Checks) == 0 && ev.CI.State != CISuccess && ev.CI.State != CIFailure {
		b.WriteString("\n**Nothing of this was checked by anything but the agent's own word.**\n")
	}
}

func (c *Check) write(b *strings.Builder, commit string, harmless func(string) string) {
	say := func(what string) {
		fmt.Fprintf(b, "**devaipod's own run** of the repository's checks on %s, in a fresh clone: %s.\n", short(commit), what)
	}
	switch c.State {
	case CheckPassed:
		say("**passed**")
	case CheckFailed:
		say("**failed**")
	case CheckLate:
		say("**did not end in time**")
	case CheckRunning:
		say("it goes on")
	case CheckBroken:
		say("it **could not be made**")
		quote(b, harmless(clip(c.Why, 1000)))
	default:
		b.WriteString("**devaipod's own run**: none, the repository names no checks (`agent.checks`).\n")
	}
	if c.State == CheckRunning {
		return
	}
	if c.Setup != "" {
		b.WriteString("\nThe setup before it went wrong:\n")
		quote(b, harmless(clip(c.Setup, 1000)))
	}
	for _, r := range c.Commands[:min(len(c.Commands), mostChecks)] {
		fmt.Fprintf(b, "\n- %s %s, %.0f s\n", code(r.Command), r.outcome(), r.Seconds)
		if r.Exit != 0 {
			output(b, r.Tail, harmless)
		}
	}
}

// outcome tells how a command ended.
func (r Ran) outcome() string {
	switch {
	case r.Why != "":
		return "**failed**: " + code(r.Why)
	case r.Exit != 0:
		return fmt.Sprintf("**failed**: exit code %d", r.Exit)
	}
	return "exit code 0"
}

// mostChecks is how many commands of each kind a text names.
const mostChecks = 20

func (s *Seen) write(b *strings.Builder, harmless func(string) string) {
	if len(s.Checks) == 0 {
		fmt.Fprintf(b, "\n**What the gate saw**: of %d commands that the model asked for, none that checks anything.\n", s.Others)
		return
	}
	fmt.Fprintf(b, "\n**What the gate saw** the model ask for, with the results as the agent told it (and %d other commands):\n", s.Others)
	if more := len(s.Checks) - mostChecks; more > 0 {
		fmt.Fprintf(b, "\nThe first %d are left out.\n", more)
	}
	for _, c := range s.Checks[max(0, len(s.Checks)-mostChecks):] {
		fmt.Fprintf(b, "\n- %s %s: %s\n", c.At.UTC().Format("15:04:05"), code(c.Command), c.Outcome())
		if c.Told && (c.Exit == nil || *c.Exit != 0) {
			output(b, c.Tail, harmless)
		}
	}
}

// Outcome tells what the agent told of a command, in words.
func (c Command) Outcome() string {
	switch {
	case !c.Told:
		return "no result was told"
	case c.Exit != nil && *c.Exit != 0:
		return fmt.Sprintf("**failed**, exit code %d", *c.Exit)
	case c.Exit != nil:
		return "exit code 0"
	case c.Failed:
		return "**failed**"
	}
	return "no exit code was told; its last lines:"
}

func (c *CI) write(b *strings.Builder) {
	words := map[CIState]string{CIPending: "still pending when this was written", CISuccess: "success", CIFailure: "**failure**"}[c.State]
	if words == "" {
		words = "none, the commit has no status"
	}
	fmt.Fprintf(b, "\n**CI**: %s.\n", words)
	for i, j := range c.Jobs[:min(len(c.Jobs), mostChecks)] {
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(b, "- %s %s%s\n", code(j.Name), j.State, j.at())
		if url := clip(j.URL, 500); strings.HasPrefix(url, "https://") || strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "/") {
			fmt.Fprintf(b, "  %s\n", code(url))
		}
	}
}

// output shows the last lines of an output as code.
func output(b *strings.Builder, tail string, harmless func(string) string) {
	if strings.TrimSpace(tail) == "" {
		return
	}
	fence := "```"
	for strings.Contains(tail, fence) {
		fence += "`"
	}
	fmt.Fprintf(b, "\n  %s\n", fence)
	for line := range strings.Lines(harmless(lastPart(tail, mostOutput))) {
		fmt.Fprintf(b, "  %s\n", strings.TrimRight(line, "\r\n"))
	}
	fmt.Fprintf(b, "  %s\n", fence)
}

// mostOutput is how much of an output a text shows, in bytes.
const mostOutput = 1000

// lastPart is the end of a text, from the beginning of a line where there is one.
func lastPart(s string, n int) string {
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	if _, rest, ok := strings.Cut(s, "\n"); ok && rest != "" {
		return rest
	}
	return strings.ToValidUTF8(s, "")
}

// quote shows a text as a quotation.
func quote(b *strings.Builder, text string) {
	b.WriteString("\n")
	for line := range strings.Lines(text) {
		fmt.Fprintf(b, "> %s\n", strings.TrimRight(line, "\r\n"))
	}
}
