package workertest_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/job"
)

func TestAJobsSteps(t *testing.T) {
	spec := aJob(`
name: test
on: push
env: {FROM_WORKFLOW: workflow}
jobs:
  build:
    runs-on: box
    needs: [before]
    env: {FROM_JOB: job}
    outputs:
      word: ${{ steps.first.outputs.word }}
      secret: ${{ secrets.KEY }}
    strategy: {matrix: {go: [21]}}
    steps:
      - id: first
        run: |
          echo "word=hello" >>$GITHUB_OUTPUT
          echo "LATER=from the file" >>$GITHUB_ENV
          echo "# done ${{ secrets.KEY }}" >>$GITHUB_STEP_SUMMARY
          echo "$FROM_WORKFLOW $FROM_JOB ${{ vars.V }} ${{ matrix.go }}"
      - run: |
          echo "$LATER ${{ steps.first.outputs.word }} ${{ needs.before.outputs.made }} ${{ needs.before.result }}"
          echo "${{ github.repository }} $GITHUB_REF $GITHUB_SHA ${{ gitea.actor }} ${{ forgejo.event.head_commit.message }}"
          echo "$GITHUB_RUN_ID $GITHUB_RUN_NUMBER $GITHUB_SERVER_URL $GITHUB_API_URL $GITHUB_EVENT_NAME $GITHUB_WORKSPACE"
      - run: exit 3
        continue-on-error: true
      - if: forgejo.actor == 'eve'
        run: echo never
      - run: |
          echo "::group::Tests"
          echo "::error file=a.go,line=3::it broke"
          echo "::warning::beware"
          echo "::notice::look"
          echo "::debug::hidden"
          echo "::endgroup::"
          printf "no newline"
`)
	spec.Secrets, spec.Vars = map[string]string{"KEY": "hunter2-hunter2"}, map[string]string{"V": "variable"}
	spec.Needs = map[string]job.Need{"before": {Result: job.Success, Outputs: map[string]string{"made": "artifact"}}}
	r := run(t, spec, nil)
	r.wants(job.Success)
	r.ended("-1 success, 0 success, 1 success, 2 failure, 3 skipped, 4 success, -2 success")
	r.says(
		"0: workflow job variable 21", "1: from the file hello artifact success",
		"1: ada/engine refs/heads/main "+strings.Repeat("1", 40)+" ada the message",
		"1: 7 3 http://forge.test http://forge.test/api/v1 push /workspace/ada/engine",
		"2: ::warning::The step failed, and the job goes on (continue-on-error)",
		"4: ::group::Tests", "4: ::error file=a.go,line=3::it broke", "4: ::warning::beware", "4: ::notice::look", "4: ::endgroup::", "4: no newline",
	)
	r.hides("hunter2", "::debug::", "never")
	if len(r.last.Outputs) != 1 || r.last.Outputs["word"] != "hello" {
		t.Errorf("outputs %v", r.last.Outputs)
	}
	var summary string
	for _, e := range r.events {
		summary += e.Summary
	}
	if summary != "# done ***\n" {
		t.Errorf("summary %q", summary)
	}
}

func TestLinesComeAsTheyArePrintedAndACancelRunsWhatAsksForIt(t *testing.T) {
	r := run(t, aJob(`
on: push
jobs:
  build:
    runs-on: box
    steps:
      - run: |
          echo waiting
          sleep 1000
      - run: echo not this
      - if: always()
        run: echo cleaning ${{ job.status }}
`), func(e job.Event, p *os.Process) {
		if e.Line != nil && *e.Line == "waiting" { // which only a live line can be
			must(t, p.Signal(syscall.SIGTERM))
		}
	})
	r.wants(job.Cancelled)
	r.ended("-1 success, 0 cancelled, 1 skipped, 2 success, -2 success")
	r.says("2: cleaning cancelled")
	r.hides("not this")
}

func TestAJobThatTakesTooLong(t *testing.T) {
	r := run(t, aJob("on: push\njobs: {build: {runs-on: box, timeout-minutes: 0.02, steps: [{run: sleep 1000}]}}"), nil)
	r.wants(job.Failure)
	if !strings.Contains(r.log, ": ::error::The job was ended: it may take 1.2s at most\n") {
		t.Error(r.log)
	}
}

// What a program prints must not show a secret, nor become what later steps run, but by
// the files that only the step itself knows. Outputs are what old actions set by printing.
func TestWhatAProgramPrints(t *testing.T) {
	spec := aJob(`
on: push
jobs:
  build:
    runs-on: box
    steps:
      - env: {S: "${{ secrets.LINES }}"}
        run: |
          echo "$S"
          echo "x$S" | base64
          echo token-of-the-task
          echo "::add-mask::made-in-the-job"
          echo "is made-in-the-job hidden"
      - id: hostile
        run: |
          echo "still made-in-the-job"
          echo "::set-env name=LD_PRELOAD::/evil"
          echo "::add-path::/evil"
          echo "##[set-env name=BASH_ENV;]/evil"
          echo "::set-output name=word::printed"
          echo "::stop-commands::tok"
          echo "::set-output name=word::not obeyed"
          echo "::tok::"
          printf '\033[31mred\033[0m \377\n'
      - run: echo "[$LD_PRELOAD] [$BASH_ENV] [$PATH] ${{ steps.hostile.outputs.word }}"
`)
	spec.Secrets = map[string]string{"LINES": "first-line-of-it\nsecond-line-of-it"}
	r := run(t, spec, nil)
	r.wants(job.Success)
	r.hides("first-line-of-it", "second-line-of-it", "token-of-the-task", "made-in-the-job", "ZmlYc3QtbGluZS1vZi", "irst-line")
	r.says("0: is *** hidden", "1: still ***")
	r.says("1: ::error::The output ::set-env:: is not obeyed: write to the file that $GITHUB_ENV or $GITHUB_PATH names instead", "1: ::set-output name=word::not obeyed", "1: \x1b[31mred\x1b[0m \ufffd")
	if !strings.Contains(r.log, "2: [] [] [") || strings.Contains(r.log, "2: [] [] [/evil") || !strings.Contains(r.log, "] printed\n") {
		t.Error(r.log)
	}
}

func TestALineWithoutEnd(t *testing.T) {
	r := run(t, aJob(`
on: push
jobs:
  build:
    runs-on: box
    steps:
      - run: head -c 100000000 /dev/zero | tr '\0' x
      - run: head -c 3000000 /dev/zero | tr '\0' y >>$GITHUB_STEP_SUMMARY
      - run: head -c 3000000 /dev/zero | tr '\0' z >>$GITHUB_ENV
`), nil)
	r.wants(job.Failure)
	for _, e := range r.events {
		if e.Line != nil && len(*e.Line) > job.MaxLine || len(e.Summary) > job.MaxSummary {
			t.Errorf("an event of %d and %d bytes", len(*e.Line), len(e.Summary))
		}
	}
	if !strings.Contains(r.log, "xxx… (the rest of the line was cut off)\n") {
		t.Error("the line is not said to be cut")
	}
	r.says("2: ::error::envs.txt has more than 1048576 bytes")
}

func TestActions(t *testing.T) {
	composite := "name: c\ninputs: {who: {default: nobody}}\noutputs: {said: {value: '${{ steps.s.outputs.said }}'}}\nruns:\n  using: composite\n  steps:\n    - id: s\n      shell: bash\n      run: |\n        echo \"hello ${{ inputs.who }}\"\n        echo said=done >>$GITHUB_OUTPUT\n        cat $GITHUB_ACTION_PATH/data/file\n"
	script := "name: j\nruns: {using: node20, main: main.js, post: post.js}\n"
	address, commits := actions(t, map[string]map[string]string{
		"github.com/them/composite": {"sub/action.yml": composite, "sub/data/file": "a file of the action\n"},
		"code.test/them/script":     {"action.yml": script, "main.js": "console.log('in node', process.env.INPUT_A)", "post.js": "console.log('after all')"},
	})
	spec := aJob(`
on: push
jobs:
  build:
    runs-on: box
    steps:
      - run: |
          mkdir -p mine
          echo "runs: {using: composite, steps: [{shell: sh, run: echo of the repository}]}" >mine/action.yml
      - uses: ./mine
      - id: c
        uses: them/composite/sub@v1
        with: {who: world}
      - uses: https://code.test/them/script@` + commits["code.test/them/script"] + `
        with: {a: input}
      - run: echo "${{ steps.c.outputs.said }}"
`)
	spec.Actions = address
	r := run(t, spec, nil)
	r.wants(job.Success)
	r.ended("-1 success, 0 success, 1 success, 2 success, 3 success, 4 success, -2 success")
	r.says("1: of the repository", "2: hello world", "2: a file of the action", "3: in node input", "4: done", "-2: after all")

	spec.Workflow = []byte("on: push\njobs: {build: {runs-on: box, steps: [{run: echo before}, {uses: them/none@v1}]}}")
	r = run(t, spec, nil)
	r.wants(job.Failure)
	if !strings.Contains(r.last.Reason, "the action github.com/them/none@v1 could not be fetched") || strings.Contains(r.log, "0: ") {
		t.Errorf("reason %q\n%s", r.last.Reason, r.log)
	}
	r.ended("-1 failure, 0 skipped, 1 skipped, -2 success")
}

func TestServices(t *testing.T) {
	before, err := world.Podman(t.Context(), "ps", "--all", "--quiet")
	must(t, err)
	r := run(t, aJob(`
on: push
jobs:
  build:
    runs-on: box
    container: `+image+`
    services:
      web: {image: "`+image+`"}
    steps:
      - run: wget -q -O - http://web/hostname
`), nil)
	r.wants(job.Success)
	if !strings.Contains(r.log, "\n0: ") {
		t.Errorf("the service did not answer\n%s", r.log)
	}
	after, err := world.Podman(t.Context(), "ps", "--all", "--quiet")
	must(t, err)
	if after != before {
		t.Errorf("containers are left: %s", after)
	}
}

func TestALocalDirectory(t *testing.T) {
	spec := aJob("on: push\njobs: {build: {runs-on: box, steps: [{uses: https://code.test/actions/checkout@v4}, {run: cat file}]}}")
	spec.Dir = t.TempDir()
	must(t, os.WriteFile(spec.Dir+"/file", []byte("of the working tree\n"), 0o600))
	r := run(t, spec, nil)
	r.wants(job.Success)
	r.says("1: of the working tree")
}

func TestWhatCannotRun(t *testing.T) {
	for name, c := range map[string]struct{ workflow, reason string }{
		"an unknown label": {"on: push\njobs: {b: {runs-on: solaris, steps: [{run: x}]}}", "runs-on solaris: no image is configured for that label; there is one for box"},
		"no YAML":          {"on: [", "the workflow can't be read"},
		"no such key":      {"on: push\njobs: {b: {runs-on: box, stepz: []}}", "the workflow is not valid"},
		"no Docker":        {"on: push\njobs: {b: {runs-on: box, steps: [{run: x}]}}", "docker"},
	} {
		spec := aJob(c.workflow)
		if name == "no Docker" {
			spec.Docker = t.TempDir() + "/none.sock"
		}
		r := run(t, spec, nil)
		r.wants(job.Failure)
		if !strings.Contains(strings.ToLower(r.last.Reason), strings.ToLower(c.reason)) || strings.Contains(r.last.Reason, "\n") || !strings.Contains(r.log, "-1: ::error::") {
			t.Errorf("%s: reason %q\n%s", name, r.last.Reason, r.log)
		}
	}
}
