package worker_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/ci/worker"
)

func bomb() string {
	var b strings.Builder
	b.WriteString("on: push\nx0: &x0 [a, a, a, a, a, a, a, a, a, a]\n")
	for i := range 12 {
		fmt.Fprintf(&b, "x%d: &x%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*x%d, ", i), 10), ", "))
	}
	b.WriteString("jobs: {b: {runs-on: box, steps: [{run: x}]}}\n")
	return b.String()
}

func TestWorkflowsThatAreRefused(t *testing.T) {
	one := func(job string) string { return "on: push\njobs: {b: {runs-on: box, " + job + "}}" }
	for name, c := range map[string]struct{ workflow, reason string }{
		"a bomb of aliases":      {bomb(), "too large"},
		"an alias of itself":     {"on: push\nx: &x [*x]\njobs: {}", "the workflow"},
		"deep nesting":           {"on: push\nx: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "nested more than 100 deep"},
		"too many bytes":         {"# " + strings.Repeat("x", 1<<20), "at most 1048576 are read"},
		"no jobs":                {"on: push\njobs: {}", "has 0 jobs"},
		"two jobs":               {"on: push\njobs: {a: {runs-on: box, steps: [{run: x}]}, b: {runs-on: box, steps: [{run: x}]}}", "has 2 jobs"},
		"nothing":                {"", "the workflow"},
		"a list":                 {"[1, 2]", "the workflow is not valid"},
		"an empty job":           {"on: push\njobs: {b: }", "the "},
		"no steps":               {one("steps: []"), "has no steps"},
		"a step that is nothing": {one("steps: [{run: x}, {name: y}]"), "step 2 of the job b wants either run or uses"},
		"both run and uses":      {one("steps: [{run: x, uses: a/b@c}]"), "the "},
		"ids that are one":       {one("steps: [{run: x, id: i}, {run: x, id: i}]"), "two steps of the job b have the id i"},
		"a job that needs itself": {one("needs: b, steps: [{run: x}]"),
			"needs itself"},
		"needs that nobody tells of": {one("needs: [c], steps: [{run: x}]"), "needs c, of which the forge tells nothing"},
		"a workflow that is called":  {"on: push\njobs: {b: {uses: ./../../../etc/x.yml}}", "calls the workflow"},
		"a matrix":                   {one("strategy: {matrix: {a: [1, 2]}}, steps: [{run: x}]"), "more than one combination"},
		"a large matrix":             {one("strategy: {matrix: {a: &l [1,2,3,4,5,6,7,8,9], b: *l, c: *l, d: *l, e: *l, f: *l, g: *l, h: *l, i: *l}}, steps: [{run: x}]"), "more than one combination"},
		"a matrix that includes":     {one("strategy: {matrix: {include: [{a: 1}, {a: 2}]}}, steps: [{run: x}]"), "more than one combination"},
		"a matrix of nonsense":       {one("strategy: {matrix: {include: [1]}}, steps: [{run: x}]"), "the workflow"},
		"an unknown label":           {"on: push\njobs: {b: {runs-on: [box, gpu], steps: [{run: x}]}}", "runs-on gpu: no image is configured for that label; there is one for box, host"},
		"this machine itself":        {"on: push\njobs: {b: {runs-on: host, steps: [{run: x}]}}", "runs-on host: no image"},
		"no label":                   {"on: push\njobs: {b: {runs-on: [], steps: [{run: x}]}}", "does not say what it runs on"},
		"time that is no number":     {one("timeout-minutes: -3, steps: [{run: x}]"), "want a number above 0"},
	} {
		t.Run(name, func(t *testing.T) {
			last := runs(t, &job.Spec{Workflow: []byte(c.workflow), Images: map[string]string{"box": "image", "host": "-self-hosted"}})
			if last.Result != job.Failure || !strings.Contains(last.Reason, c.reason) || strings.Contains(last.Reason, "\n") {
				t.Errorf("%s: %q, want %q", last.Result, last.Reason, c.reason)
			}
		})
	}
}

// apart puts back, at the test's end, what Main sets for its process.
func apart(t *testing.T) {
	for _, name := range []string{"DOCKER_HOST", "DOCKER_CONFIG", "XDG_CACHE_HOME", "TMPDIR"} {
		t.Setenv(name, "")
	}
}

// runs is the last event of a job that Docker is never asked for.
func runs(t *testing.T, spec *job.Spec) (last job.Event) {
	t.Helper()
	apart(t)
	in, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := worker.Main(t.Context(), bytes.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(&out); dec.More(); {
		last = job.Event{}
		if err := dec.Decode(&last); err != nil {
			t.Fatal(err)
		}
	}
	return last
}

func TestAJobThatTheForgeTurnsOutNotToWant(t *testing.T) {
	last := runs(t, &job.Spec{Workflow: []byte("on: push\njobs: {b: {runs-on: box, if: gitea.actor == 'eve', steps: [{run: x}]}}"), Images: map[string]string{"box": "image"}})
	if last.Result != job.Skipped || last.Reason != "" {
		t.Errorf("%s %q", last.Result, last.Reason)
	}
}

// The forge does not tell the job itself which ones it waited for.
func TestAJobThatAsksWhatItNeeded(t *testing.T) {
	for want, result := range map[string]string{job.Skipped: "no", job.Failure: "yes"} { // without a Docker it fails
		last := runs(t, &job.Spec{
			Workflow: []byte("on: push\njobs: {b: {runs-on: box, if: needs.a.outputs.word == 'yes' && needs.a.result == 'success', steps: [{run: x}]}}"),
			Images:   map[string]string{"box": "image"}, Needs: map[string]job.Need{"a": {Result: job.Success, Outputs: map[string]string{"word": result}}},
		})
		if last.Result != want {
			t.Errorf("%s: %s %q", result, last.Result, last.Reason)
		}
	}
}

func TestTheForgesNamesForTheContext(t *testing.T) {
	for in, want := range map[string]string{
		"echo ${{ gitea.actor }} gitea.actor":                "echo ${{ github.actor }} gitea.actor",
		"echo ${{ forgejo['ref'] == 'gitea.forgejo' }}":      "echo ${{ github['ref'] == 'gitea.forgejo' }}",
		"echo ${{ env.gitea && secrets.FORGEJO_TOKEN }}":     "echo ${{ env.gitea && secrets.FORGEJO_TOKEN }}",
		"echo ${{ format('}} {0} it''s', Forgejo.run_id) }}": "echo ${{ format('}} {0} it''s', github.run_id) }}",
		"${{ github.ref }}":                                  "${{ github.ref }}",
	} {
		quoted, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := worker.Read(&job.Spec{Workflow: fmt.Appendf(nil, "on: push\njobs: {b: {runs-on: box, steps: [{run: %s}]}}", quoted)})
		if err != nil || got != want {
			t.Errorf("%s became %s, want %s (%v)", in, got, want, err)
		}
	}
}

// This is how the forge writes a job down for its runners.
func TestNumbersAndTruthsThatTheForgeWritesAsText(t *testing.T) {
	const text = `"on": push
jobs:
  b:
    name: b
    runs-on: box
    steps:
      - run: echo
        env: {timeout-minutes: "7"}
        timeout-minutes: "%[1]s"
    timeout-minutes: '%[1]s'
    strategy: {fail-fast: "%[2]s", max-parallel: "%[1]s", matrix: {a: [x]}}
`
	for _, c := range [][3]string{{"5", "false", ""}, {"0.5", "true", ""}, {"${{ 5 }}", "false", ""}, {"five", "false", "line 10"}, {"5", "maybe", "line 11"}} {
		_, err := worker.Read(&job.Spec{Workflow: fmt.Appendf(nil, text, c[0], c[1])})
		if (err == nil) != (c[2] == "") {
			t.Errorf("%q: %v", c, err)
		}
	}
}

func TestAliasesStandForWhatTheyName(t *testing.T) {
	got, err := worker.Read(&job.Spec{Workflow: []byte("on: push\nenv: &e {A: b}\njobs: {b: {runs-on: box, env: *e, steps: [{run: &r echo, env: *e}, {run: *r}]}}")})
	if err != nil || got != "echo" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSecretsInEveryDress(t *testing.T) {
	secret := "a \"secret\" of/more+than\none line=here"
	for _, text := range []string{
		secret, "one line=here", `a \"secret\" of/more+than\none line=here`, "a+%22secret%22+of%2Fmore%2Bthan",
		base64.StdEncoding.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte("user:" + secret)),
		base64.StdEncoding.EncodeToString([]byte("us:" + secret + "!")), base64.URLEncoding.EncodeToString([]byte("x" + secret)),
	} {
		got := worker.Hide("<"+text+">", secret)
		for part := 0; part+12 <= len(text); part++ {
			if strings.Contains(got, text[part:part+12]) {
				t.Errorf("%q shows %q", got, text[part:part+12])
				break
			}
		}
	}
	if got := worker.Hide("nothing", "", "\n", " "); got != "nothing" {
		t.Errorf("%q", got)
	}
	if got := worker.Hide("token-long", "token", "token-long"); got != "***" {
		t.Errorf("the shorter secret was masked first: %q", got)
	}
}

func TestALineIsHeldInBounds(t *testing.T) {
	var out bytes.Buffer
	w, held, flush := worker.Lines(&out)
	chunk := bytes.Repeat([]byte("x"), 1<<20-7)
	for range 100 {
		if n, err := w.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	if held() > 4<<20 {
		t.Errorf("%d bytes are held", held())
	}
	fmt.Fprint(w, "\nshort\n\nrest")
	if err := flush(); err != nil {
		t.Fatal(err)
	}
	if err := flush(); err != nil {
		t.Fatal(err)
	}
	long, rest, _ := strings.Cut(out.String(), "\n")
	if len(long) != 1<<20 || rest != "short\n\nrest\n" {
		t.Errorf("%d bytes, then %q", len(long), rest)
	}
}

func TestFilesOfVariables(t *testing.T) {
	got, err := worker.ParseEnv("\ufeffA=1\r\nB<<END\none\n\ntwo=2\nEND\nC=x<<y\n\nD=")
	want := map[string]string{"A": "1", "B": "one\n\ntwo=2", "C": "x<<y", "D": ""}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"nonsense", "A<<END\nno end", "=x"} {
		if got, err := worker.ParseEnv(text); err == nil {
			t.Errorf("%q gives %q", text, got)
		}
	}
}

func TestAJobComesToAnEnd(t *testing.T) {
	deaf := make(chan struct{})
	defer close(deaf)
	ended, end := context.WithCancel(context.Background())
	end()
	for name, c := range map[string]struct {
		ctx  context.Context
		time time.Duration
		run  func(force, asked context.Context) error
		want error
	}{
		"by itself":         {context.Background(), time.Hour, func(context.Context, context.Context) error { return context.Canceled }, context.Canceled},
		"when asked":        {ended, 0, func(_, asked context.Context) error { <-asked.Done(); return nil }, nil},
		"when forced":       {ended, 0, func(force, _ context.Context) error { <-force.Done(); return force.Err() }, context.Canceled},
		"left behind":       {ended, 0, func(context.Context, context.Context) error { <-deaf; return nil }, worker.ErrBehind},
		"when time is up":   {context.Background(), 1, func(_, asked context.Context) error { <-asked.Done(); return nil }, worker.ErrTime},
		"cancelled in time": {ended, time.Hour, func(_, asked context.Context) error { <-asked.Done(); return context.Cause(asked) }, context.Canceled},
	} {
		if err := worker.Bound(c.ctx, c.time, time.Millisecond, time.Millisecond, c.run); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	err := worker.Bound(t.Context(), 0, time.Hour, time.Hour, func(context.Context, context.Context) error { panic("oops") })
	if err == nil || !strings.Contains(err.Error(), "can't be run: oops") {
		t.Errorf("a panic: %v", err)
	}
}

type broken struct{ after int }

func (b *broken) Write(p []byte) (int, error) {
	if b.after--; b.after < 0 {
		return 0, errors.New("nobody listens")
	}
	return len(p), nil
}

func TestNobodyListens(t *testing.T) {
	apart(t)
	err := worker.Main(t.Context(), strings.NewReader("{}"), &broken{after: 1})
	if err == nil || !strings.Contains(err.Error(), "nobody listens") {
		t.Errorf("%v", err)
	}
	if err := worker.Main(t.Context(), strings.NewReader("nonsense"), &broken{}); err == nil {
		t.Error("nonsense is a job")
	}
}
