package ci_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/ci"
)

const sha = "0123456789abcdef0123456789abcdef01234567"

// a task's context, changed by the pairs of a path with dots and a value.
func task(workflow string, pairs ...any) *ci.Task {
	event := map[string]any{"repository": map[string]any{"id": 7.0}, "sender": map[string]any{"login": "person"}}
	g := map[string]any{"actor": "person", "ref": "refs/heads/main", "sha": sha, "event_name": "push", "event": event}
	for i := 0; i < len(pairs); i += 2 {
		m, keys := g, strings.Split(pairs[i].(string), ".")
		for _, k := range keys[:len(keys)-1] {
			next, ok := m[k].(map[string]any)
			if !ok {
				next = map[string]any{}
				m[k] = next
			}
			m = next
		}
		m[keys[len(keys)-1]] = pairs[i+1]
	}
	return &ci.Task{Info: ci.Info{RepoID: 7}, Workflow: []byte(workflow), Github: g}
}

func pull(more ...any) *ci.Task {
	return task("on: push", append([]any{
		"event_name", "pull_request", "ref", "refs/pull/1/head", "head_ref", "topic", "event.pull_request.head.ref", "topic",
		"event.pull_request.head.sha", sha, "event.pull_request.head.repo.id", 7.0, "event.pull_request.base.repo.id", 7.0,
	}, more...)...)
}

var rules = ci.Rules{Agents: []string{"robot"}, Branches: "agent/"}

func TestJudgeTrustsNobodyWhoMayBeAnAgent(t *testing.T) {
	for name, c := range map[string]struct {
		task *ci.Task
		want ci.Tier
	}{
		"a person's push":                  {task("on: push"), ci.Trusted},
		"a person's tag":                   {task("on: push", "ref", "refs/tags/v1"), ci.Trusted},
		"a person's pull request":          {pull(), ci.Trusted},
		"a schedule":                       {task("on: push", "actor", "gitea-actions", "event_name", "schedule"), ci.Trusted},
		"the agent's push":                 {task("on: push", "actor", "robot"), ci.Untrusted},
		"in capitals":                      {task("on: push", "actor", "RoBot "), ci.Untrusted},
		"the agent sends it":               {task("on: push", "event.sender.login", "robot"), ci.Untrusted},
		"the agent pushes it":              {task("on: push", "event.pusher.login", "robot"), ci.Untrusted},
		"nobody's":                         {task("on: push", "actor", ""), ci.Untrusted},
		"an actor that is no name":         {task("on: push", "actor", 7.0), ci.Untrusted},
		"an agent's branch":                {task("on: push", "ref", "refs/heads/agent/1-x"), ci.Untrusted},
		"in capitals, the branch":          {task("on: push", "ref", "refs/heads/Agent/1-x"), ci.Untrusted},
		"a tag called like one":            {task("on: push", "ref", "refs/tags/agent/1-x"), ci.Untrusted},
		"no branch":                        {task("on: push", "ref", ""), ci.Untrusted},
		"a ref that is none":               {task("on: push", "ref", "main"), ci.Untrusted},
		"a pull ref without pull request":  {task("on: push", "ref", "refs/pull/1/head"), ci.Untrusted},
		"the event's branch":               {task("on: push", "event.ref", "agent/1"), ci.Untrusted},
		"deep in the event":                {task("on: push", "event.workflow_run.head_branch", "agent/1"), ci.Untrusted},
		"in a list in the event":           {task("on: push", "event.list", []any{map[string]any{"head_ref": "agent/1"}}), ci.Untrusted},
		"an agent's pull request":          {pull("event.pull_request.head.ref", "agent/1-x"), ci.Untrusted},
		"by head_ref alone":                {pull("head_ref", "agent/1-x"), ci.Untrusted},
		"by the label alone":               {pull("event.pull_request.head.label", "person:agent/1-x"), ci.Untrusted},
		"of a fork":                        {pull("event.pull_request.head.repo.id", 8.0), ci.Untrusted},
		"of a repository that is gone":     {pull("event.pull_request.head.repo", nil), ci.Untrusted},
		"without a head":                   {pull("event.pull_request.head", nil), ci.Untrusted},
		"that is none":                     {pull("event.pull_request", "x"), ci.Untrusted},
		"a pull request's event without":   {task("on: push", "event_name", "pull_request_review"), ci.Untrusted},
		"pull_request_target of an agent":  {pull("event_name", "pull_request_target", "ref", "refs/heads/main", "head_ref", "agent/1"), ci.Untrusted},
		"a review by the agent":            {pull("actor", "robot", "event_name", "pull_request_review"), ci.Untrusted},
		"an empty context":                 {&ci.Task{Workflow: []byte("on: push")}, ci.Untrusted},
		"an agent's that wants a secret":   {task("env: {A: \"${{ secrets.B }}\"}", "actor", "robot"), ci.NeedsApproval},
		"a person's that wants one":        {task("env: {A: \"${{ secrets.B }}\"}"), ci.Trusted},
		"an agent's that can't be read":    {task("a: [", "actor", "robot"), ci.NeedsApproval},
		"an agent's that is no workflow":   {task("", "actor", "robot"), ci.NeedsApproval},
		"an agent's with two documents":    {task("a: b\n---\nc: d", "actor", "robot"), ci.NeedsApproval},
		"an agent's that is far too large": {task("a: "+strings.Repeat("b", 2<<20), "actor", "robot"), ci.NeedsApproval},
	} {
		if v := rules.Judge(t.Context(), c.task); v.Tier != c.want || (len(v.Reasons) == 0) != (c.want == ci.Trusted) {
			t.Errorf("%s: %s %q, not %s", name, v.Tier, v.Reasons, c.want)
		}
	}
	if v := (ci.Rules{}).Judge(t.Context(), task("on: push")); v.Tier != ci.Untrusted {
		t.Errorf("without rules: %s", v.Tier)
	}
}

func TestJudgeFindsSecretsHoweverTheyAreSpelled(t *testing.T) {
	for text, want := range map[string]bool{
		`run: echo secrets`:                                                   false,
		`run: echo $\{\{ secrets.X }}`:                                        false,
		`run: echo ${{ github.sha }} and no secrets`:                          false,
		`run: echo ${{ github.token }}`:                                       false,
		`run: echo ${{ secrets.GITHUB_TOKEN }}`:                               false,
		`run: echo ${{ secrets [ 'gitea_token' ] }}`:                          false,
		`run: echo ${{ secrets.FORGEJO_TOKEN }}`:                              false,
		`run: echo ${{ inputs.secrets }}`:                                     false,
		`run: echo ${{ secrets.X }}`:                                          true,
		`run: echo ${{secrets.X}}`:                                            true,
		`run: echo ${{ SeCrEtS.X }}`:                                          true,
		`run: echo ${{ secrets['x'] }}`:                                       true,
		`run: echo ${{ secrets[format('{0}', 'x')] }}`:                        true,
		`run: echo ${{ secrets['GITHUB_TOKEN' || 'x'] }}`:                     true,
		`run: echo ${{ secrets[github.event.x] }}`:                            true,
		`run: echo ${{ secrets.* }}`:                                          true,
		`run: echo ${{ secrets }}`:                                            true,
		`run: echo ${{ toJSON(secrets) }}`:                                    true,
		`run: echo ${{ toJSON( secrets ) }}`:                                  true,
		`run: echo ${{ secrets.GITHUB_TOKEN_2 }}`:                             true,
		`run: echo ${{ '}}' && secrets.X }}`:                                  true,
		`run: echo ${{ 'it''s }}' && secrets.X }}`:                            true,
		`run: echo ${{ 'a' }} ${{ secrets.X }}`:                               true,
		`run: echo ${{ '${{ secrets.X }}' }}`:                                 true,
		`run: echo ${{ format('${{ {0}.X }}', 'secrets') }}`:                  true,
		`run: echo ${{ 'open secrets.X`:                                       true,
		`run: echo ${{ secrets.X`:                                             true,
		"run: >-\n  ${{\n  secrets\n  .X }}":                                  true,
		`run: "${{ \x73ecrets.X }}"`:                                          true,
		`run: "\u0024{{ secrets.X }}"`:                                        true,
		`run: !!binary JHt7IHNlY3JldHMuWCB9fQ==`:                              true,
		`run: !x a`:                                                           true,
		`if: secrets.X != ''`:                                                 true,
		`IF: secrets.X`:                                                       true,
		`if: true && secrets.X`:                                               true,
		`if: ${{ secrets.X }}`:                                                true,
		`if: github.ref == 'x'`:                                               false,
		"a: &s secrets.X\nif: *s":                                             true,
		"a: &s {b: \"${{ secrets.X }}\"}\nc: *s":                              true,
		"a: &s {b: \"${{ secrets.X }}\"}\nc: {<<: *s}":                        true,
		`"${{ secrets.X }}": a`:                                               true,
		`a: [[{b: ["${{ secrets.X }}"]}]]`:                                    true,
		`secrets: inherit`:                                                    true,
		`Secrets: {a: b}`:                                                     true,
		`with: {token: "${{ secrets.PAT || github.token }}"}`:                 true,
		`permissions: read-all`:                                               false,
		`permissions: {contents: read, issues: none}`:                         false,
		`permissions: {}`:                                                     false,
		`permissions: write-all`:                                              true,
		`permissions: {contents: write}`:                                      true,
		`permissions: {contents: "${{ 'write' }}"}`:                           true,
		"a: &p {contents: write}\npermissions: *p":                            true,
		"permissions: {<<: {contents: write}}":                                true,
		"permissions: [write]":                                                true,
		"a: {b: " + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "}": true,
		"a: 1\n---\nrun: ${{ secrets.X }}":                                    true,
	} {
		v := rules.Judge(t.Context(), task(text, "actor", "robot"))
		if (v.Tier == ci.NeedsApproval) != want {
			t.Errorf("%s: %s %q", text, v.Tier, v.Reasons)
		}
	}
}

func TestAnApprovalIsOfOneCommitThatLeavesWorkflowsAlone(t *testing.T) {
	for name, c := range map[string]struct {
		task              *ci.Task
		approved, changes bool
		err1, err2        error
		want              ci.Tier
	}{
		"approved":                    {task: task("secrets: x", "actor", "robot"), approved: true, want: ci.Trusted},
		"not approved":                {task: task("secrets: x", "actor", "robot"), want: ci.NeedsApproval},
		"changes workflows":           {task: task("secrets: x", "actor", "robot"), approved: true, changes: true, want: ci.NeedsApproval},
		"changes them, wants nothing": {task: task("on: push", "actor", "robot"), approved: true, changes: true, want: ci.Untrusted},
		"approval can't be read":      {task: task("secrets: x", "actor", "robot"), approved: true, err1: errors.New("x"), want: ci.NeedsApproval},
		"changes can't be read":       {task: task("secrets: x", "actor", "robot"), approved: true, err2: errors.New("x"), want: ci.NeedsApproval},
		"another commit is run":       {task: pull("head_ref", "agent/1", "sha", strings.Repeat("f", 40)), approved: true, want: ci.Untrusted},
		"pull_request_target":         {task: pull("head_ref", "agent/1", "event_name", "pull_request_target"), approved: true, want: ci.Untrusted},
		"a pull request":              {task: pull("head_ref", "agent/1"), approved: true, want: ci.Trusted},
	} {
		r := rules
		r.Approved = func(context.Context, int64, string) (bool, error) { return c.approved, c.err1 }
		r.ChangesWorkflows = func(context.Context, int64, string) (bool, error) { return c.changes, c.err2 }
		if v := r.Judge(t.Context(), c.task); v.Tier != c.want {
			t.Errorf("%s: %s %q, not %s", name, v.Tier, v.Reasons, c.want)
		}
	}
	s := ci.OpenStore(t.TempDir())
	if err := s.Approve(7, sha, ci.Approval{By: "person", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "main", "../../x", sha + "0"} {
		if err := s.Approve(7, bad, ci.Approval{}); err == nil {
			t.Errorf("%q was approved", bad)
		}
	}
	one, err := s.Approved(7, sha)
	other, err2 := s.Approved(8, sha)
	if !one || other || err != nil || err2 != nil {
		t.Errorf("approved %t %v, of another repository %t %v", one, err, other, err2)
	}
}

// What says secrets in an expression, in whatever YAML, must not run without approval.
func FuzzJudge(f *testing.F) {
	f.Add("run: a", "b")
	f.Add("a: &x [*x]", "'")
	f.Add("<<: {permissions: 1}", "}} ${{ ''")
	f.Fuzz(func(t *testing.T, text, inner string) {
		rules.Judge(t.Context(), task(text, "actor", "robot"))
		expr := "run: |-\n  " + strings.NewReplacer("\n", " ", "\r", " ").Replace("${{ ("+strings.ReplaceAll(inner, "'", "''")+") && secrets.PAT }}")
		quoted := strings.Contains(inner, "}}") || strings.HasSuffix(strings.TrimSpace(inner), ".")
		if v := rules.Judge(t.Context(), task(expr, "actor", "robot")); !quoted && v.Tier != ci.NeedsApproval {
			t.Errorf("%q: %s", expr, v.Tier)
		}
	})
}
