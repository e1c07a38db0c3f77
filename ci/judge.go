package ci

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// A Tier says how far a job is trusted.
type Tier string

const (
	// Trusted jobs get all that the forge gives them.
	Trusted Tier = "trusted"
	// Untrusted jobs get no secrets, and reach the forge by the door alone.
	Untrusted Tier = "untrusted"
	// NeedsApproval are untrusted jobs that ask for more; they are not run.
	NeedsApproval Tier = "needs approval"
)

// A Verdict is the tier of a task, and the reasons why it is none that is trusted more.
type Verdict struct {
	Tier    Tier
	Reasons []string
}

// Rules say whose jobs are trusted.
type Rules struct {
	// Agents are the accounts that agents act by.
	Agents []string
	// Branches is how the names of agents' branches begin: "agent/".
	Branches string
	// Approved says whether a trusted person has approved a commit of a repository, by
	// the forge's number of it. nil approves none.
	Approved func(ctx context.Context, repo int64, commit string) (bool, error)
	// ChangesWorkflows says whether a commit has other workflows, or local actions,
	// than the default branch; commits that do are never trusted. nil is yes, always.
	ChangesWorkflows func(ctx context.Context, repo int64, commit string) (bool, error)
}

// Judge says which tier a task is of. Whatever is not clear counts against it.
func (r Rules) Judge(ctx context.Context, t *Task) Verdict {
	reasons := r.doubts(t)
	if len(reasons) == 0 {
		return Verdict{Tier: Trusted}
	}
	approved, why := r.approved(ctx, t)
	if approved {
		return Verdict{Tier: Trusted, Reasons: []string{"approved"}}
	}
	if wants := wanted(t.Workflow); len(wants) > 0 {
		if why != "" {
			wants = append(wants, why)
		}
		return Verdict{Tier: NeedsApproval, Reasons: append(wants, reasons...)}
	}
	if why != "" {
		reasons = append(reasons, why)
	}
	return Verdict{Tier: Untrusted, Reasons: reasons}
}

// doubts are the reasons not to trust a task; none is what trusted ones have.
func (r Rules) doubts(t *Task) []string {
	var why []string
	say := func(doubt bool, format string, args ...any) {
		if doubt {
			why = append(why, fmt.Sprintf(format, args...))
		}
	}
	say(r.Branches == "" || len(r.Agents) == 0, "it is not known who is an agent")
	actor := text(t.Github, "actor")
	say(strings.TrimSpace(actor) == "", "it is not known who caused it")
	people := []string{actor, text(t.Github, "triggering_actor")}
	for _, k := range []string{"sender", "pusher"} {
		people = append(people, text(t.Github, "event", k, "login"), text(t.Github, "event", k, "username"))
	}
	slices.Sort(people)
	for _, p := range slices.Compact(people) {
		say(r.isAgent(p), "%s, an agent, caused it", p)
	}
	pull, isPull := t.pull()
	ref := text(t.Github, "ref")
	say(!strings.HasPrefix(ref, "refs/heads/") && !strings.HasPrefix(ref, "refs/tags/") && !(isPull && strings.HasPrefix(ref, "refs/pull/")),
		"it is not known which branch it is of")
	if isPull {
		why = append(why, doubtsOfPull(pull)...)
	}
	if b := r.branchOf(t.Github); b != "" {
		why = append(why, b+" is an agent's branch")
	}
	return why
}

func (r Rules) isAgent(login string) bool {
	login = strings.TrimSpace(login)
	return slices.ContainsFunc(r.Agents, func(a string) bool { return login != "" && strings.EqualFold(a, login) })
}

// pull is the pull request that the event is about, if it is about one.
func (t *Task) pull() (map[string]any, bool) {
	p := at(t.Github, "event", "pull_request")
	m, _ := p.(map[string]any)
	return m, p != nil || strings.HasPrefix(text(t.Github, "event_name"), "pull_request") || text(t.Github, "head_ref") != ""
}

func doubtsOfPull(p map[string]any) []string {
	var why []string
	if text(p, "head", "ref") == "" {
		why = append(why, "it is not known which branch the pull request is of")
	}
	head, ok := at(p, "head", "repo", "id").(float64)
	base, ok2 := at(p, "base", "repo", "id").(float64)
	if !ok || !ok2 || head != base {
		why = append(why, "the pull request is of another repository")
	}
	return why
}

// branchOf finds the name of an agent's branch in a context: where it says ref or branch,
// however deep in the event.
func (r Rules) branchOf(v any) string {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range sortedKeys(v) {
			if s, is := v[k].(string); is {
				k := strings.ToLower(k)
				if (strings.Contains(k, "ref") || strings.Contains(k, "branch") || k == "label") && r.isBranch(s) {
					return s
				}
			} else if found := r.branchOf(v[k]); found != "" {
				return found
			}
		}
	case []any:
		for _, inner := range v {
			if found := r.branchOf(inner); found != "" {
				return found
			}
		}
	}
	return ""
}

// isBranch says whether a ref, or the name of a branch, is an agent's. OWNER:NAME is what
// labels of pull requests' branches look like.
func (r Rules) isBranch(ref string) bool {
	ref = strings.ToLower(strings.TrimSpace(ref))
	for _, prefix := range []string{"refs/", "heads/", "tags/"} {
		ref = strings.TrimPrefix(ref, prefix)
	}
	if _, name, labeled := strings.Cut(ref, ":"); labeled {
		ref = name
	}
	return r.Branches != "" && strings.HasPrefix(ref, strings.ToLower(r.Branches))
}

// approved says whether the commit that will be run was approved, and is one that can be;
// why says what is to be told where it was approved for nothing.
func (r Rules) approved(ctx context.Context, t *Task) (ok bool, why string) {
	commit := text(t.Github, "sha")
	// With pull_request_target the commit is not the one of the pull request.
	if r.Approved == nil || t.RepoID <= 0 || commit == "" || text(t.Github, "event_name") == "pull_request_target" {
		return false, ""
	}
	if p, is := t.pull(); is && text(p, "head", "sha") != commit {
		return false, ""
	}
	yes, err := r.Approved(ctx, t.RepoID, commit)
	if err != nil {
		return false, "whether it was approved can't be told: " + err.Error()
	}
	if !yes {
		return false, ""
	}
	if r.ChangesWorkflows == nil {
		return false, "it was approved, but what it changes is not known"
	}
	changes, err := r.ChangesWorkflows(ctx, t.RepoID, commit)
	if err != nil {
		return false, "it was approved, but whether it changes workflows can't be told: " + err.Error()
	}
	if changes {
		return false, "it was approved, but a commit that changes workflows never gets secrets"
	}
	return true, ""
}
