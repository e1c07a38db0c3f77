package reconcile

import (
	"fmt"
	"strings"
	"time"
)

// A View is what people are told of one issue: what `devaipod list` prints and
// our comment says. Its JSON is part of the command's output.
type View struct {
	Key         `json:"-"`
	Issue       string     `json:"issue"` // owner/repo#3
	Title       string     `json:"title"`
	URL         string     `json:"url"`
	State       State      `json:"state"`
	Doing       AgentState `json:"agent_state,omitempty"` // the agent's own, as far as the pod-api was asked
	Why         string     `json:"why,omitempty"`         // in words, where a person has to act
	Choices     []string   `json:"choices,omitempty"`     // the answers to what it asks, if only these are
	Cause       Cause      `json:"cause,omitempty"`       // of asking or failed
	Resting     bool       `json:"resting,omitempty"`     // its processes are stopped
	Position    int        `json:"position,omitempty"`    // in the queue for a place, from 1
	Agent       string     `json:"agent,omitempty"`       // that the label names
	Branch      string     `json:"branch,omitempty"`
	PullRequest string     `json:"pull_request,omitempty"` // its URL
	Pull        int64      `json:"-"`
	Pod         string     `json:"pod,omitempty"`
	Activity    string     `json:"activity,omitempty"`
	Checked     string     `json:"checked,omitempty"` // what came of it, in words
	Landing     string     `json:"landing,omitempty"` // how far people approve, in words
	Used        string     `json:"used,omitempty"`    // of the model, in words
	Note        string     `json:"note,omitempty"`    // about an order
	Open        bool       `json:"open,omitempty"`    // it reaches every public host
	Blocked     []Block    `json:"blocked,omitempty"`
	Started     time.Time  `json:"started,omitzero"`
	Labeler     string     `json:"labeler,omitempty"`
	// Trouble is why the rest of it may be old: the last try to look at the issue
	// failed, and is made again.
	Trouble string `json:"trouble,omitempty"`
	// Ask names what a person is to be told that the agent asks: the same for the same
	// thing, also after a restart; "" for nothing, and while somebody's answer is given to it.
	Ask string `json:"-"`

	open    Pull          // its pull request, while that is open
	ordered time.Time     // when somebody gave an order last
	pod     Key           // the pod's, which is another where a repository was renamed
	until   time.Duration // Uptime at which it has to be looked at again, 0 for never
	setups  int           // how many of the pod's containers say that their setup went wrong
	mark    string        // Summary's
	summed  AgentState    // Summary's
	word    int64         // Orders'
	// chatty is set in watch when a new activity may be told again.
	chatty bool
}

// stateScope is what the names of the labels that tell a state begin with.
const stateScope = "agent/"

// comment renders the status comment. What the agent wrote passes through
// harmless, which takes the force out of mentions, keywords and images.
func (v View) comment(trigger string, harmless func(string) string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "**%s**\n\n", life[v.State].headline)
	v.writeWhy(&b, harmless)
	fmt.Fprintf(&b, "| state | `%s` |\n|---|---|\n", v.State)
	if v.Agent != "" {
		fmt.Fprintf(&b, "| agent | %s |\n", code(v.Agent))
	}
	if v.Branch != "" {
		fmt.Fprintf(&b, "| branch | `%s` |\n", v.Branch)
	}
	if v.Pull != 0 {
		fmt.Fprintf(&b, "| pull request | #%d |\n", v.Pull)
	}
	if v.Activity != "" && (life[v.State].place || v.State == Checking) {
		fmt.Fprintf(&b, "| now | %s |\n", code(v.Activity))
	}
	if v.Checked != "" {
		fmt.Fprintf(&b, "| checked | %s |\n", v.Checked)
	}
	if v.Landing != "" {
		fmt.Fprintf(&b, "| approved | %s |\n", code(v.Landing))
	}
	if v.Used != "" {
		fmt.Fprintf(&b, "| used | %s |\n", v.Used)
	}
	if v.Open {
		b.WriteString("| network | **open**: it reaches every public host (`network.mode`) |\n")
	}
	v.writeBlocked(&b)
	if v.Note != "" {
		fmt.Fprintf(&b, "\n%s\n", harmless(clip(v.Note, 1000)))
	}
	fmt.Fprintf(&b, "\n%s\n", next(v, trigger))
	if v.Resting {
		b.WriteString("\nIts processes are stopped; its work is kept.\n")
	}
	return b.String()
}

// writeWhy quotes why a person has to act, and between which answers to choose.
func (v View) writeWhy(b *strings.Builder, harmless func(string) string) {
	text := clip(v.Why, 4000)
	for i, c := range v.Choices[:min(len(v.Choices), mostChoices)] {
		if i == 0 {
			text += "\n"
		}
		text += fmt.Sprintf("\n%d. %s", i+1, clipLine(c, 300))
	}
	if text == "" {
		return
	}
	for line := range strings.Lines(harmless(text)) {
		fmt.Fprintf(b, "> %s\n", strings.TrimRight(line, "\r\n"))
	}
	b.WriteString("\n")
}

// mostChoices is how many answers a comment names.
const mostChoices = 20

// mostBlocked is how many hosts that were refused a comment names.
const mostBlocked = 10

// writeBlocked names the hosts that the agent was refused, and how to allow them.
func (v View) writeBlocked(b *strings.Builder) {
	if len(v.Blocked) == 0 {
		return
	}
	b.WriteString("\nThe agent was kept from these hosts. To let it through to one, comment with the line at its right.\n\n| host | why | |\n|---|---|---|\n")
	for _, h := range v.Blocked[:min(len(v.Blocked), mostBlocked)] {
		allow := ""
		if h.Allow != "" {
			allow = code("/allow " + h.Allow)
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", code(fmt.Sprintf("%s:%d", h.Host, h.Port)), code(h.Why), allow)
	}
	if more := len(v.Blocked) - mostBlocked; more > 0 {
		fmt.Fprintf(b, "| and %d more (`devaipod status %s`) | | |\n", more, v.Key)
	}
}

// next says what a person can do now.
func next(v View, trigger string) string {
	if v.Agent != "" {
		trigger += ":" + v.Agent
	}
	stop := fmt.Sprintf("To stop it, take the label `%s` off, close the issue, or run `devaipod stop %s`.", trigger, v.Key)
	again := fmt.Sprintf("To start again, take the label `%s` off and put it on again.", trigger)
	switch v.State {
	case Queued, Starting, Working, Checking:
		return stop
	case Asking:
		return adviceOn(v) + " " + again + " " + stop
	case Review:
		if v.Cause == CauseApproval {
			return adviceOn(v) + " Review the pull request; merging it ends the pod. " + stop
		}
		if v.Landing != "" {
			return "Review the pull request: once it is approved it lands, and that ends the pod. " + stop
		}
		return "Review the pull request; merging it ends the pod. " + stop
	case Failed:
		return adviceOn(v) + " To let it go on from where it was, comment with a line `/retry`. " + again
	case Stopped:
		return again
	case Done:
		return "Nothing is left running."
	}
	return ""
}

// adviceOn says what a person can do about an agent that waits or has failed.
func adviceOn(v View) string {
	logs := fmt.Sprintf("`devaipod logs %s` shows what it did.", v.Key)
	switch v.Cause {
	case CauseQuestion, CausePermission:
		if v.Resting {
			return "Answer it in a comment: its pod wakes for that."
		}
		how := "in a comment"
		if len(v.Choices) > 0 {
			how = "with a choice's number or name in a comment"
		}
		return fmt.Sprintf("Answer it %s, or with `devaipod send %s \"…\"`: that goes to the agent.", how, v.Key)
	case CauseBudget:
		return "Its work so far is saved. To let it go on, comment with a line such as `/budget 10` (money), `/budget 5M tokens` or `/budget 2h` (time): what the issue may use in all."
	case CauseNothing:
		if v.Resting {
			return "Say in a comment what it should do: its pod wakes for that. " + logs
		}
		return "Say in a comment what it should do: it goes to the agent. " + logs
	case CauseCI:
		return "Mend it by a push to its branch, or say in a comment what it should do, or `/retry`: it goes to the agent, which is then told of CI again."
	case CauseApproval:
		return "If a job that needs approval may have what it asks for, comment on a line of its own `/approve-ci` and the commit; run one again that was cancelled or cut off in the forge's Actions tab."
	case CauseRefused:
		return "Check the model's key (`devaipod secret set NAME`), model.name and model.url."
	case CauseLimited:
		return "Wait until the model's limit is over, or use another key or model."
	case CauseModel:
		return "Check that the model's server is up and that model.url is right."
	case CauseStalled, CauseDeadline:
		return logs + " A smaller or clearer task may help."
	case CauseDisk:
		return "Raise agent.disk; or remove the pod with `devaipod rm` and put the label on again: a new one goes on with what was saved."
	case CauseStart:
		return "Mend what it says."
	case CauseDied:
		return logs + " If it ran out of memory, raise agent.memory."
	case CauseInterrupted, CauseSilent, CauseUnreachable:
		return logs + " Its work so far is kept, and a new start goes on from it."
	}
	return logs
}

// code shows s as code in a table cell, whatever it holds.
func code(s string) string {
	return "`" + strings.NewReplacer("`", "'", "|", "/").Replace(clipLine(s, 120)) + "`"
}

// pullText writes the pull request.
func pullText(v View, k Key, sum Summary, commits []Commit, changes []FileChange, ev *Evidence, harmless func(string) string) PullText {
	var b strings.Builder
	fmt.Fprintf(&b, "Closes #%d\n\n## What was done\n\n", k.Issue)
	done := v.State == Review || v.State == Checking || v.Cause == CauseCI
	switch {
	case done && strings.TrimSpace(sum.Message) != "":
		// Quoted: nothing in it looks as if we said it.
		b.WriteString("In the agent's own words:\n")
		quote(&b, harmless(clip(sum.Message, 16<<10)))
	case done:
		b.WriteString("The agent left no summary.\n")
	default:
		b.WriteString("The agent is still working; this is a draft until it is done.\n")
	}
	if done && ev != nil {
		ev.write(&b, harmless)
	}
	b.WriteString("\n## Commits\n\n")
	for _, c := range commits[max(0, len(commits)-50):] {
		fmt.Fprintf(&b, "- %.10s %s\n", c.SHA, harmless(clipLine(c.Subject, 200)))
	}
	if len(changes) > 0 {
		writeStat(&b, changes)
	}
	if done && v.Used != "" {
		fmt.Fprintf(&b, "\nUsed of the model: %s.\n", v.Used)
	}
	fmt.Fprintf(&b, "\n## How to try it\n\n```\ndevaipod checkout %s\n```\nor `git fetch origin %s && git switch %s` in a clone.\n", k, v.Branch, v.Branch)
	return PullText{Title: clipLine(v.Title, 200), Body: b.String(), Draft: v.State != Review}
}

func writeStat(b *strings.Builder, changes []FileChange) {
	const most = 100
	var added, deleted int
	for _, c := range changes {
		added, deleted = added+c.Added, deleted+c.Deleted
	}
	fmt.Fprintf(b, "\n## Changes\n\n%d files, +%d −%d\n\n| file | + | − |\n|---|--:|--:|\n", len(changes), added, deleted)
	for _, c := range changes[:min(len(changes), most)] {
		fmt.Fprintf(b, "| %s | %d | %d |\n", code(c.Path), c.Added, c.Deleted)
	}
	if len(changes) > most {
		fmt.Fprintf(b, "| and %d more | | |\n", len(changes)-most)
	}
}
