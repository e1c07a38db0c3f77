package worker_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/ci/worker"
)

// plans asks for a plan of one workflow on push, unless q says otherwise.
func plans(t *testing.T, q job.Question, workflow string) (*job.Plan, error) {
	t.Helper()
	apart(t)
	if q.Files == nil {
		q.Files = map[string][]byte{"test.yaml": []byte(workflow)}
	}
	g := map[string]any{"event_name": "push", "repository": "ada/engine", "ref": "refs/heads/main", "sha": strings.Repeat("1", 40), "event": map[string]any{"after": "x"}}
	maps.Copy(g, q.Github)
	q.Github = g
	in, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := worker.Plan(t.Context(), bytes.NewReader(in), &out); err != nil {
		return nil, err
	}
	p := new(job.Plan)
	if err := json.Unmarshal(out.Bytes(), p); err != nil {
		t.Fatal(err)
	}
	return p, nil
}

// names are the jobs of a plan, as people see them.
func runNames(p *job.Plan) string {
	var out []string
	for _, w := range p.Workflows {
		for _, j := range w.Jobs {
			for _, r := range j.Runs {
				out = append(out, r.Name)
			}
			if j.Later {
				out = append(out, j.ID+" later")
			}
			if j.Reason != "" {
				out = append(out, j.ID+" not: "+j.Reason)
			}
		}
	}
	return strings.Join(out, ", ")
}

func TestJobsComeAfterThoseThatTheyNeed(t *testing.T) {
	const workflow = `
name: The tests
on: {push: {branches: [main]}, schedule: [{cron: "0 0 * * *"}]}
jobs:
  publish: {runs-on: box, needs: [build, test], if: always(), steps: [{run: x}]}
  test: {runs-on: box, needs: build, steps: [{run: x}], strategy: {fail-fast: false, matrix: {go: [21, "1.10"], os: [a, b], exclude: [{go: 21, os: a}], include: [{os: a, extra: yes}]}}}
  build: {name: "Build ${{ github.repository }}", runs-on: box, steps: [{name: One, run: x}, {uses: actions/checkout@v4, with: {fetch-depth: 0}}, {run: "make\nmore"}]}
  alone: {runs-on: box, steps: [{run: x}]}
`
	p, err := plans(t, job.Question{}, workflow)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := runNames(p), "Build ada/engine, test (yes, 1.10, a), test (1.10, b), test (21, b), publish, alone"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	w := p.Workflows[0]
	if w.File != "test.yaml" || w.Name != "The tests" || !p.History || !w.Jobs[2].If || !slices.Equal(w.Jobs[2].Needs, []string{"build", "test"}) {
		t.Errorf("%+v", p)
	}
	if got := w.Jobs[0].Runs[0].Steps; !slices.Equal(got, []string{"One", "actions/checkout@v4", "Run make"}) {
		t.Errorf("steps %q", got)
	}
	// A runner takes each of them, with what the others gave.
	for _, j := range w.Jobs {
		needs := map[string]job.Need{}
		for _, name := range j.Needs {
			needs[name] = job.Need{Result: job.Success}
		}
		for _, r := range j.Runs {
			spec := &job.Spec{Workflow: r.Workflow, Needs: needs, Images: map[string]string{"box": "image"}, Github: map[string]any{"repository": "ada/engine", "ref": "refs/heads/main", "sha": strings.Repeat("1", 40)}}
			if err := worker.NewJob(t.Context(), spec, t.TempDir()); err != nil {
				t.Errorf("%s: %v\n%s", r.Name, err, r.Workflow)
			}
		}
	}
	if p, err = plans(t, job.Question{Job: "test"}, workflow); err != nil || strings.Contains(runNames(p), "publish") || strings.Contains(runNames(p), "alone") || !strings.Contains(runNames(p), "Build") {
		t.Errorf("the test alone: %v, %v", p, err)
	}
	if p, err = plans(t, job.Question{Job: "none"}, workflow); err != nil || len(p.Workflows) > 0 {
		t.Errorf("a job that is not there: %v, %v", p, err)
	}
}

func TestAWorkflowRunsOnItsEvents(t *testing.T) {
	files := map[string][]byte{}
	for name, on := range map[string]string{"a": "push", "b": "[pull_request, push]", "c": "{workflow_dispatch: }", "d": "{pull_request: {branches: [x]}}"} {
		files[name] = []byte("on: " + on + "\njobs: {b: {runs-on: box, steps: [{run: x}]}}")
	}
	for event, want := range map[string]string{"push": "a b", "pull_request": "b d", "workflow_dispatch": "c"} {
		p, err := plans(t, job.Question{Files: files, Github: map[string]any{"event_name": event}}, "")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, w := range p.Workflows {
			got = append(got, w.File)
		}
		if strings.Join(got, " ") != want || len(p.Others) != len(files)-len(got) {
			t.Errorf("on %s: %s, others %v; want %s", event, got, p.Others, want)
		}
	}
}

func TestInputsOfAWorkflow(t *testing.T) {
	const workflow = `
on: {workflow_dispatch: {inputs: {level: {type: choice, options: [low, high], default: low}, dry: {type: boolean}, who: {required: true}}}}
jobs: {b: {name: "for ${{ inputs.who }} at ${{ inputs.level }}", runs-on: box, steps: [{run: x}]}}
`
	ask := func(inputs map[string]string) (*job.Plan, error) {
		return plans(t, job.Question{Inputs: inputs, Github: map[string]any{"event_name": "workflow_dispatch"}}, workflow)
	}
	p, err := ask(map[string]string{"who": "ada", "dry": "true"})
	if err != nil || runNames(p) != "for ada at low" || !maps.Equal(p.Workflows[0].Inputs, map[string]string{"level": "low", "dry": "true", "who": "ada"}) {
		t.Errorf("%+v, %v", p, err)
	}
	for says, inputs := range map[string]map[string]string{
		"it wants the input who":                            {},
		"it has no input none; it has dry, level, who":      {"who": "x", "none": "x"},
		`the input level is "top"; it is one of low, high`:  {"who": "x", "level": "top"},
		`the input dry is "perhaps"; it is true or false`:   {"who": "x", "dry": "perhaps"},
		"test.yaml: it has no input a; it has dry, level, ": {"a": "x"},
	} {
		if _, err := ask(inputs); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v, want %s", inputs, err, says)
		}
	}
}

func TestAMatrixOfWhatAnotherJobGives(t *testing.T) {
	const workflow = `
on: push
jobs:
  first: {runs-on: box, steps: [{run: x}]}
  second: {runs-on: box, needs: first, steps: [{run: x}], strategy: {matrix: {x: "${{ fromJSON(needs.first.outputs.list) }}"}}}
`
	p, err := plans(t, job.Question{}, workflow)
	if err != nil || runNames(p) != "first, second later" {
		t.Fatalf("%s, %v", runNames(p), err)
	}
	for list, want := range map[string]string{
		`["a","b"]`: "second (a), second (b)",
		`[{"k":1}]`: "second (map[k:1])",
		`[]`:        "second not: the matrix has no value for x",
		// What a step gave is data. As an expression it would be told a secret.
		`["${{ secrets.KEY }}"]`:               "second not: a value of the matrix holds an expression, which it may not once it was evaluated",
		`nonsense`:                             "second not: ",
		`[` + strings.Repeat("1,", 300) + `1]`: "second not: the matrix has 301 combinations; at most 256 are run",
	} {
		q := job.Question{Job: "second", Needs: map[string]job.Need{"first": {Result: job.Success, Outputs: map[string]string{"list": list}}}}
		p, err := plans(t, q, workflow)
		if err != nil || !strings.HasPrefix(runNames(p), want) || len(p.Workflows[0].Jobs) != 1 {
			t.Errorf("%.40s: %.200s, %v; want %s", list, runNames(p), err, want)
		}
	}
}

func TestWorkflowsWithNoPlan(t *testing.T) {
	many := func(n int, f string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, f+"\n", i)
		}
		return b.String()
	}
	bomb := "x0: &x0 [a]\n"
	for i := 1; i < 20; i++ {
		bomb += fmt.Sprintf("x%d: &x%d [*x%d, *x%d, *x%d]\n", i, i, i-1, i-1, i-1)
	}
	const steps = "runs-on: box, steps: [{run: x}]"
	for name, c := range map[string]struct{ workflow, says string }{
		"a cycle":          {"on: push\njobs: {a: {" + steps + ", needs: c}, b: {" + steps + ", needs: a}, c: {" + steps + ", needs: [b]}}", "the jobs wait for each other: a needs c needs b needs a"},
		"itself":           {"on: push\njobs: {a: {" + steps + ", needs: a}}", "the jobs wait for each other: a needs a"},
		"a need of none":   {"on: push\njobs: {a: {" + steps + ", needs: z}}", "the job a needs z, which the workflow has not"},
		"an empty job":     {"on: push\njobs: {a: }", "the workflow is not valid"},
		"no jobs":          {"on: push\njobs: {}", "0 jobs"},
		"no YAML":          {"on: [", "the workflow can't be read"},
		"nonsense":         {"on: push\njobs: {a: {" + steps + ", stepz: 1}}", "the workflow is not valid"},
		"a bomb":           {bomb + "on: push\njobs: {a: {" + steps + "}}", "too large"},
		"too many jobs":    {"on: push\njobs:\n" + many(257, "  j%d: {"+steps+"}"), "257 jobs"},
		"with matrices":    {"on: push\njobs:\n" + many(20, "  j%d: {"+steps+", strategy: {matrix: {a: [1,2,3,4], b: [1,2,3,4]}}}"), "more than 256 jobs"},
		"many large texts": {"on: push\nx: &x " + strings.Repeat("x", 500_000) + "\nenv:\n" + many(100, "  E%d: *x") + "jobs: {a: {" + steps + "}}", "the workflow is not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := plans(t, job.Question{}, c.workflow); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%.200v, want %s", err, c.says)
			}
		})
	}
}

// What ails one job leaves the others alone.
func TestJobsThatCanNotRun(t *testing.T) {
	for matrix, says := range map[string]string{
		"{a: &l [1,2,3,4,5,6,7,8,9], b: *l, c: *l, d: *l, e: *l, f: *l, g: *l, h: *l, i: *l}": "more than 10000 combinations",
		"{a: []}":                            "the matrix has no value for a",
		"{a: [1], exclude: [{z: 1}]}":        "the matrix: ",
		"{include: [1]}":                     "",
		"{a: ['${{ fromJSON(''nope'') }}']}": "the matrix: ",
	} {
		p, err := plans(t, job.Question{}, "on: push\njobs: {good: {runs-on: box, steps: [{run: x}]}, b: {runs-on: box, steps: [{run: x}], strategy: {matrix: "+matrix+"}}}")
		switch {
		case says == "" && err == nil:
			t.Errorf("%s: %s", matrix, runNames(p))
		case says != "" && (err != nil || !strings.HasPrefix(runNames(p), "good, b not: ") || !strings.Contains(runNames(p), says)):
			t.Errorf("%s: %.200s, %v; want %s", matrix, runNames(p), err, says)
		}
	}
	p, err := plans(t, job.Question{}, "on: push\nenv: {A: &a '"+strings.Repeat("x", 500_000)+"'}\njobs: {b: {runs-on: box, env: {B: *a, C: *a, D: *a, E: *a, F: *a, G: *a, H: *a, I: *a, J: *a}, steps: [{run: x}]}}")
	if err != nil || !strings.Contains(runNames(p), "b not: the job b has more than 4194304 bytes") {
		t.Errorf("%.200s, %v", runNames(p), err)
	}
}
