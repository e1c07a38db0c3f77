package ci

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"time"

	runnerv1 "code.gitea.io/actions-proto-go/runner/v1"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// A Task is what the forge gives to a runner: one job of one run.
type Task struct {
	Info
	Workflow []byte         // of one job, its matrix expanded
	Github   map[string]any // the context of that name, with the event in it
	Secrets  map[string]string
	Vars     map[string]string
	Needs    map[string]job.Need
}

func newTask(m *runnerv1.Task) *Task {
	t := &Task{
		Workflow: m.GetWorkflowPayload(), Github: m.GetContext().AsMap(),
		Secrets: m.GetSecrets(), Vars: m.GetVars(), Needs: map[string]job.Need{},
	}
	names := map[runnerv1.Result]string{}
	for name, r := range results {
		names[r] = name
	}
	for id, n := range m.GetNeeds() {
		t.Needs[id] = job.Need{Result: names[n.GetResult()], Outputs: n.GetOutputs()}
	}
	t.Info = Info{
		Task: m.GetId(), Repo: text(t.Github, "repository"), Run: text(t.Github, "run_number"), Attempt: text(t.Github, "run_attempt"),
		Workflow: text(t.Github, "workflow"), Event: text(t.Github, "event_name"), Ref: text(t.Github, "ref"),
		Commit: text(t.Github, "sha"), Actor: text(t.Github, "actor"),
	}
	if id, ok := at(t.Github, "event", "repository", "id").(float64); ok {
		t.RepoID = int64(id)
	}
	t.Job, t.Name, t.Steps = outline(t.Workflow)
	return t
}

// at is what is found in nested maps under the keys, nil for nothing.
func at(m map[string]any, keys ...string) any {
	var v any = m
	for _, k := range keys {
		inner, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = inner[k]
	}
	return v
}

func text(m map[string]any, keys ...string) string {
	s, _ := at(m, keys...).(string)
	return s
}

// ownTokens are the secrets that the forge gives to every job, the same token in each.
var ownTokens = []string{"GITHUB_TOKEN", "GITEA_TOKEN", "FORGEJO_TOKEN"}

func isOwnToken(name string) bool {
	for _, t := range ownTokens {
		if strings.EqualFold(name, t) {
			return true
		}
	}
	return false
}

// token and runtime are the forge's own for this job.
func (t *Task) token() string {
	if s := text(t.Github, "token"); s != "" {
		return s
	}
	for name, v := range t.Secrets {
		if isOwnToken(name) && v != "" {
			return v
		}
	}
	return ""
}

func (t *Task) runtime() string { return text(t.Github, "gitea_runtime_token") }

// tokens are all strings that could be a token: those of the forge's, and whatever has
// "token" in its key, anywhere.
func (t *Task) tokens() []string {
	found := map[string]bool{}
	for name, v := range t.Secrets {
		if isOwnToken(name) {
			found[v] = true
		}
	}
	var walk func(v any, token bool)
	walk = func(v any, token bool) {
		switch v := v.(type) {
		case string:
			found[v] = found[v] || token
		case map[string]any:
			for k, inner := range v {
				walk(inner, token || strings.Contains(strings.ToLower(k), "token"))
			}
		case []any:
			for _, inner := range v {
				walk(inner, token)
			}
		}
	}
	walk(t.Github, false)
	var all []string
	for s, token := range found {
		if token && len(s) >= minToken {
			all = append(all, s)
		}
	}
	return all
}

// minToken is how long a token is at least, bytes: what is shorter would be found in any text.
const minToken = 8

// masks is what must not be in the log.
func (t *Task) masks() []string {
	all := t.tokens()
	for _, s := range t.Secrets {
		all = append(all, s)
	}
	return all
}

// job is what the executor gets. An untrusted one has no secrets, and another token.
func (t *Task) job(tier Tier, timeout time.Duration) (Job, error) {
	j := Job{
		Info: t.Info, Tier: tier, Token: t.token(), Runtime: t.runtime(), Secrets: len(wanted(t.Workflow)) > 0,
		Base: branchRef(text(t.Github, "base_ref")), Main: branchRef(text(t.Github, "event", "repository", "default_branch")),
	}
	j.Spec = job.Spec{
		Workflow: t.Workflow, Github: t.Github, Secrets: t.Secrets, Vars: t.Vars, Needs: t.Needs, Timeout: timeout,
	}
	if tier == Trusted {
		return j, nil
	}
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return Job{}, fmt.Errorf("making a token: %w", err)
	}
	j.Door = hex.EncodeToString(b[:])
	swap := swapper(t.tokens(), func(token string) string {
		if token == j.Runtime {
			return withClaims(token, j.Door)
		}
		return j.Door
	})
	j.Spec.Secrets = map[string]string{}
	for _, name := range ownTokens {
		if _, has := t.Secrets[name]; has {
			j.Spec.Secrets[name] = j.Door
		}
	}
	j.Spec.Github = swapped(t.Github, swap).(map[string]any)
	j.Spec.Workflow = []byte(swap.Replace(string(t.Workflow)))
	j.Spec.Vars = maps.Clone(t.Vars)
	for k, v := range j.Spec.Vars {
		j.Spec.Vars[k] = swap.Replace(v)
	}
	return j, nil
}

// branchRef is the ref of a branch; of none, none.
func branchRef(branch string) string {
	if branch == "" {
		return ""
	}
	return "refs/heads/" + strings.TrimPrefix(branch, "refs/heads/")
}

// withClaims is a token that says what another one does, and has a signature that means
// nothing to the forge: clients of artifacts read in it which run they are in.
func withClaims(token, signature string) string {
	i := strings.LastIndexByte(token, '.')
	return token[:i+1] + signature
}

// swapper puts others in the place of tokens, the longest first.
func swapper(tokens []string, by func(string) string) *strings.Replacer {
	pairs := []string{}
	for _, s := range sortedByLength(tokens) {
		pairs = append(pairs, s, by(s))
	}
	return strings.NewReplacer(pairs...)
}

// swapped is a copy of v with all of its strings put through swap.
func swapped(v any, swap *strings.Replacer) any {
	switch v := v.(type) {
	case string:
		return swap.Replace(v)
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, inner := range v {
			m[swap.Replace(k)] = swapped(inner, swap)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i, inner := range v {
			l[i] = swapped(inner, swap)
		}
		return l
	}
	return v
}
