package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// job is what `devaipod run` is asked for.
type job struct {
	repo, task, file, base, model, agent string
	detach                               bool
}

func (a *app) runCmd() *cobra.Command {
	var j job
	cmd := &cobra.Command{
		Use: "run [REPO] TASK", Short: "Open an issue, start an agent on it, and follow it to the end",
		Long: `Open an issue with the task in your name, put the label on it, and print what the
agent does until it is done. The first line of the task is the issue's title.
REPO is owner/name, or inferred inside a checkout of the forge. A TASK of - is read
from standard input; --file reads it from a file.

Exit codes: 0 the pull request is ready for review, 1 the agent failed, 2 usage,
3 the agent needs a person, 4 refused, 5 forge or service not reachable.
Ctrl-C stops following; the agent goes on (devaipod stop ISSUE ends it).`,
		Args: args(cobra.MaximumNArgs(2)),
		RunE: func(cmd *cobra.Command, rest []string) error {
			if err := a.readJob(cmd.Context(), &j, rest); err != nil {
				return err
			}
			return a.runJob(cmd.Context(), j)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&j.file, "file", "F", "", "read the task from `FILE` (- is standard input)")
	f.StringVar(&j.base, "base", "", "`branch` to start from (default: the repository's)")
	f.StringVar(&j.model, "model", "", "`name` of the model, instead of model.name")
	f.StringVar(&j.agent, "agent", "", "`name` of the agent, of those that have one in the configuration")
	f.BoolVarP(&j.detach, "detach", "d", false, "print the issue's URL and do not follow")
	return a.jsonFlag(cmd)
}

// readJob works out repository and task from the arguments.
func (a *app) readJob(ctx context.Context, j *job, rest []string) (err error) {
	if j.file == "" {
		if len(rest) == 0 {
			return usagef("no task: devaipod run [REPO] \"what to do\"")
		}
		j.task, rest = rest[len(rest)-1], rest[:len(rest)-1]
		if j.task == "-" {
			j.file = "-"
		}
	}
	switch {
	case len(rest) > 1:
		return usagef("a task by --file and one as an argument: give one of them")
	case len(rest) == 1:
		j.repo, err = parseRepo(rest[0])
	default:
		j.repo, err = a.repoHere(ctx)
	}
	if err != nil {
		return err
	}
	const most = 512 << 10
	if j.file != "" {
		in := a.in
		if j.file != "-" {
			f, err := os.Open(j.file)
			if err != nil {
				return &exitError{codeUsage, fmt.Errorf("reading the task: %w", err)}
			}
			defer f.Close()
			in = f
		}
		b, err := io.ReadAll(io.LimitReader(in, most+1))
		if err != nil {
			return fmt.Errorf("reading the task: %w", err)
		}
		j.task = string(b)
	}
	if j.task = strings.TrimSpace(j.task); j.task == "" {
		return usagef("the task is empty")
	}
	if len(j.task) > most {
		return usagef("the task is longer than 512 KiB")
	}
	return nil
}

func (a *app) runJob(ctx context.Context, j job) error {
	if _, err := a.cfg.agentNamed(j.agent); err != nil {
		return &exitError{codeUsage, err}
	}
	creds, err := a.readCredentials()
	if err != nil {
		return err
	}
	var st serviceStatus
	if err := a.api().get(ctx, "/api/status", &st); err != nil {
		return err // before an issue is made that nobody would see
	}
	client, err := a.personForge(creds)
	if err != nil {
		return err
	}
	repo, err := forge.ParseRepo(j.repo)
	if err != nil {
		return &exitError{codeUsage, err}
	}
	if j.base != "" {
		if _, ok, err := client.Branch(ctx, repo, j.base); err != nil {
			return unreachable(err)
		} else if !ok {
			return usagef("%s has no branch %q to start from (or is not on the forge)", repo, j.base)
		}
	}
	if err := a.prepareForRun(ctx, creds, repo); err != nil {
		return unreachable(err)
	}
	title, body := titleOf(j.task)
	if j.model != "" {
		body += "\n\n/model " + j.model
	}
	issue, err := client.CreateIssue(ctx, repo, forge.IssueSpec{Title: title, Body: body, Ref: j.base, Labels: []string{forge.TriggerOf(a.cfg.Label, j.agent)}})
	if errors.Is(err, forge.ErrNotFound) {
		return usagef("there is no repository %s on the forge: devaipod forge add brings one in", repo)
	}
	if err != nil {
		return unreachable(err)
	}
	k := reconcile.Key{Owner: repo.Owner, Repo: repo.Name, Issue: issue.Number}
	if err := a.keepCommand("run", k.String(), "opened the issue with the label"); err != nil {
		return err
	}
	if j.detach {
		_, err := fmt.Fprintln(a.out, issue.URL)
		return err
	}
	a.step("issue    %s", issue.URL)
	if err := a.api().post(ctx, podPath(k)+"/kick"); err != nil {
		return err
	}
	return a.follow(ctx, k)
}

// titleOf splits a task into an issue's title and text.
func titleOf(task string) (title, body string) {
	line, rest, _ := strings.Cut(task, "\n")
	title = strings.Join(strings.Fields(line), " ")
	if r := []rune(title); len(r) > 120 {
		return string(r[:119]) + "…", task
	}
	return title, strings.TrimSpace(rest)
}

// follow prints what the agent does until it is really done: until the loop
// has come to a state in which it waits for people, or for nothing.
func (a *app) follow(ctx context.Context, k reconcile.Key) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan podapi.Event)
	go func() {
		after := int64(0)
		for ctx.Err() == nil {
			// Fails while the pod is not there yet, or again; the states below
			// tell of what is wrong for good.
			_ = a.followEvents(ctx, k, after, true, func(ev podapi.Event) error {
				after = ev.ID
				select {
				case events <- ev:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			sleep(ctx, 300*time.Millisecond)
		}
	}()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	var last reconcile.View
	for {
		select {
		case <-ctx.Done():
			return &exitError{codeFailed, fmt.Errorf("no longer following %s; the agent goes on (devaipod stop %s ends it)", k, k)}
		case ev := <-events:
			if err := a.printEvent(ev); err != nil {
				return err
			}
		case <-tick.C:
			v, err := a.api().view(ctx, k)
			if errors.Is(err, errNotFound) {
				continue // not seen yet
			}
			if err != nil {
				return err
			}
			a.tellChange(last, v)
			if last = v; v.State.Waits() {
				a.drain(events)
				return a.outcome(v)
			}
		}
	}
}

// drain prints the events that are still under way.
func (a *app) drain(events <-chan podapi.Event) {
	for {
		select {
		case ev := <-events:
			if a.printEvent(ev) != nil {
				return
			}
		case <-time.After(500 * time.Millisecond):
			return
		}
	}
}

func (a *app) tellChange(last, v reconcile.View) {
	if v.State != last.State {
		a.step("state    %s", v.State)
	}
	if v.Doing != last.Doing && v.Doing != "" {
		a.step("agent    %s", plain(string(v.Doing), 30))
	}
	if v.PullRequest != last.PullRequest {
		a.step("pull     %s", v.PullRequest)
	}
	if v.Why != last.Why && v.State == reconcile.Queued {
		a.step("waiting  %s", plain(v.Why, 1000))
	}
}

// outcome turns the last state into the exit code.
func (a *app) outcome(v reconcile.View) error {
	if a.asJSON {
		if err := a.printJSON(v); err != nil {
			return err
		}
	}
	why := errors.New(plain(v.Why, 2000))
	switch v.State {
	case reconcile.Review, reconcile.Done:
		return nil
	case reconcile.Asking:
		return &exitError{codeNeedsHuman, why}
	case reconcile.Refused:
		return &exitError{codeRefused, why}
	}
	return &exitError{codeFailed, why}
}

// followEvents reads the pod's events after an id; with follow it goes on
// until ctx ends or the pod-api does.
func (a *app) followEvents(ctx context.Context, k reconcile.Key, after int64, follow bool, each func(podapi.Event) error) error {
	path := podPath(k) + "/events?after=" + strconv.FormatInt(after, 10)
	if !follow {
		path += "&follow=0"
	}
	resp, err := a.api().do(ctx, "GET", path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var ev podapi.Event
		if err := json.Unmarshal([]byte(data), &ev); err != nil {
			return fmt.Errorf("reading an event: %w", err)
		}
		if err := each(ev); err != nil {
			return err
		}
	}
	return lines.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
