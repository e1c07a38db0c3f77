package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// sampleFiles are the repository that the demo works on.
var sampleFiles = map[string]string{
	"README.md": "# hello\n\nA very small program.\n\n    sh hello.sh World\n",
	"AGENTS.md": "# For agents\n\n- Plain POSIX sh, no bashisms.\n- `sh test.sh` must pass before you commit.\n- One commit for one thing, with a subject that says what it does.\n",
	"hello.sh":  "#!/bin/sh\n# Greets somebody.\nprintf 'Hello, %s!\\n' \"${1:-World}\"\n",
	"test.sh":   "#!/bin/sh\nset -eu\n[ \"$(sh hello.sh Ada)\" = 'Hello, Ada!' ]\necho ok\n",
	// It fetches no action, as the demo also works without the internet.
	".github/workflows/test.yaml": `name: Tests
on: push
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - name: Get the commit
        run: |
          git clone --quiet "${GITHUB_SERVER_URL/:\/\//://x:${{ github.token }}@}/$GITHUB_REPOSITORY" .
          git checkout --quiet "$GITHUB_SHA"
      - name: Test it
        run: sh test.sh
`,
}

// sample makes the repository on disk, once.
func (d *demo) sample(ctx context.Context) (string, error) {
	dir := filepath.Join(d.dir, "hello")
	if err := os.RemoveAll(dir); err != nil { // what an interrupted run left
		return "", err
	}
	for name, text := range sampleFiles {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	for _, args := range [][]string{{"init", "--quiet", "--initial-branch", "main"}, {"add", "."}, {"commit", "--quiet", "-m", "Greet somebody"}} {
		if err := d.stack.Git(ctx, testkit.Call{Args: args, Dir: dir}); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// issue files one, labels it and follows it to its pull request.
func (d *demo) issue(ctx context.Context) error {
	api, proof := d.person(), testkit.NewProof()
	issue, err := api.CreateIssue(ctx, repo, issueTitle, proof.Task(""))
	if err != nil {
		return err
	}
	d.say("As %s: opened issue %d, with a random nonce in it: %s", person, issue.Number, issue.URL)
	if err := api.Label(ctx, repo, issue.Number, "devaipod"); err != nil {
		return err
	}
	d.say("As %s: put the label devaipod on it; now an agent works, and this is what its status comment says", person)
	pull, err := d.follow(ctx, api, issue)
	if err != nil {
		return err
	}
	check, err := d.check(ctx, api, pull)
	if err != nil {
		return err
	}
	d.say("Fetching %s from the forge by git, and looking for the sha256 of the nonce in it", pull.Head.Ref)
	diff, err := proof.Verify(ctx, d.stack, api, repo, pull.Base.Ref, pull.Head.Ref)
	if err != nil && d.model.scripted {
		return err
	}
	d.show(issue, pull, check, diff, proof, err == nil)
	return nil
}

// A check is what the forge tells of one of a commit's jobs of CI.
type check struct {
	Name  string `json:"context"`
	State string `json:"status"`
	URL   string `json:"target_url"`
}

// check is what came of the workflow on a pull request's head, which is ready for review by
// then. It also lists the jobs.
func (d *demo) check(ctx context.Context, api *testkit.API, pull testkit.Pull) (check, error) {
	d.say("devaipod ci list")
	if err := d.devaipod(ctx, "", "ci", "list"); err != nil {
		return check{}, err
	}
	var all struct {
		State string  `json:"state"`
		Each  []check `json:"statuses"`
	}
	if err := api.Get(ctx, "/repos/"+repo+"/commits/"+pull.Head.SHA+"/status", &all); err != nil {
		return check{}, err
	}
	if len(all.Each) == 0 || d.model.scripted && all.State != "success" {
		return check{}, fmt.Errorf("the workflow has not succeeded on %s: %+v", pull.Head.SHA, all)
	}
	return all.Each[0], nil
}

// follow waits for the pull request that is ready for review.
func (d *demo) follow(ctx context.Context, api *testkit.API, issue testkit.Issue) (testkit.Pull, error) {
	patience := 5 * time.Minute
	if !d.model.scripted {
		patience = time.Hour
	}
	limit := time.After(patience)
	var last string
	for {
		comments, err := api.Comments(ctx, repo, issue.Number)
		if err != nil {
			return testkit.Pull{}, err
		}
		text, _ := testkit.StatusComment(comments, instance)
		if line := statusLine(text); line != last {
			fmt.Fprintf(d.out, "    %s  %s\n", time.Now().Format(time.TimeOnly), line)
			last = line
		}
		pulls, err := api.Pulls(ctx, repo, issue.Number)
		if err != nil {
			return testkit.Pull{}, err
		}
		state := statusRow(text, "state")
		if len(pulls) > 0 && !pulls[0].Draft && state == "review" {
			return pulls[0], nil
		}
		switch state {
		case "failed", "asking", "stopped", "refused":
			return testkit.Pull{}, fmt.Errorf("the agent came to no pull request (%s). Its status comment says:\n%s\nIts log: %s logs %s#%d", state, text, d.command(), repo, issue.Number)
		}
		select {
		case <-ctx.Done():
			return testkit.Pull{}, ctx.Err()
		case <-limit:
			return testkit.Pull{}, fmt.Errorf("no pull request after %s; see %s and %s", patience, issue.URL, filepath.Join(d.stack.StateDir, "service.log"))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// statusRow is a row of the status comment's table.
func statusRow(comment, name string) string {
	for line := range strings.Lines(comment) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "| "+name+" | "); ok {
			return strings.Trim(strings.TrimSuffix(value, " |"), "`")
		}
	}
	return ""
}

// statusLine is the comment in one line.
func statusLine(comment string) string {
	if comment == "" {
		return "(no comment yet)"
	}
	parts := []string{statusRow(comment, "state")}
	for _, name := range []string{"pull request", "now"} {
		if value := statusRow(comment, name); value != "" {
			parts = append(parts, name+": "+value)
		}
	}
	return strings.Join(parts, "   ")
}

// command is devaipod's command line for this instance.
func (d *demo) command() string {
	return "bin/devaipod --config " + d.stack.ConfigFile
}

// show is the end: where everything is, and what of it is not the real thing.
func (d *demo) show(issue testkit.Issue, pull testkit.Pull, check check, diff string, proof testkit.Proof, proven bool) {
	w := d.out
	fmt.Fprintf(w, "\nThe pull request is ready for review.\n\n")
	fmt.Fprintf(w, "  forge          %s\n", d.stack.ForgeURL())
	fmt.Fprintf(w, "  log in         %s / %s\n", person, d.saved.Password)
	fmt.Fprintf(w, "  issue          %s\n", issue.URL)
	fmt.Fprintf(w, "  pull request   %s\n", pull.URL)
	fmt.Fprintf(w, "  its diff       %s/files\n", pull.URL)
	fmt.Fprintf(w, "  its check      %s%s (%s: %s)\n\n", d.stack.ForgeURL(), check.URL, printable(check.Name, 60), check.State)
	shown := 0
	for line := range strings.Lines(diff) {
		if shown++; shown > 16 {
			fmt.Fprintf(w, "  | …\n")
			break
		}
		fmt.Fprintf(w, "  | %s\n", printable(strings.TrimRight(line, "\n"), 110))
	}
	if proven {
		fmt.Fprintf(w, "\nThe proof: the issue's random nonce was %s; the diff holds its sha256,\n%s,\nwhich a command inside the agent's container computed.\n", proof.Nonce, proof.Sum)
	} else {
		fmt.Fprintf(w, "\nThe diff does not hold the sha256 of the issue's nonce: the model did not do what it was asked.\n")
	}
	fmt.Fprintf(w, "\nNot the real thing here: the forge is Gitea 1.23.8, Forgejo's sibling, in an image\nbuilt on this machine (devaipod's default is Forgejo's image).\n")
	if d.model.scripted {
		fmt.Fprintf(w, "The model is a script that answers as OpenAI's API does; with a real one:\n  make demo MODEL_URL=https://… MODEL=name < keyfile\n")
	}
	fmt.Fprintf(w, "Podman, opencode, git and devaipod are real.\n")
	fmt.Fprintf(w, "\n  look around    %s list\n  in a browser   %s open\n  remove it all  make demo-down\n", d.command(), d.command())
}

// printable is text of the agent, made harmless for a terminal and cut.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
