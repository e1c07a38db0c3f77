package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
	"codeberg.org/devaipod/devaipod/pods/usage"
	"codeberg.org/devaipod/devaipod/pods/witness"
)

// A note is what is kept of a commit with which a pull request left draft: where it
// comes from, and the evidence.
type note struct {
	At       time.Time `json:"at"` // when it left draft
	Instance string    `json:"instance"`
	Issue    string    `json:"issue"` // owner/repo#3
	RepoID   int64     `json:"repo_id"`

	Labeler   string    `json:"labeler"`
	LabeledAt time.Time `json:"labeled_at"`
	LabelID   int64     `json:"label_event"`
	TextHash  string    `json:"text_hash"` // of the text that the labeler saw

	Agent   string `json:"agent"`
	Model   string `json:"model"`
	Image   string `json:"image"` // that the agent works in
	ImageID string `json:"image_id,omitempty"`

	Branch string `json:"branch"`
	Base   string `json:"base"`
	reconcile.Evidence

	Requests int64         `json:"requests"` // all that the issue's agents have made of models
	Tokens   int64         `json:"tokens"`
	Cost     string        `json:"cost"`
	Time     time.Duration `json:"model_time"`
}

// Seen implements [reconcile.Pods].
func (p *podPort) Seen(_ context.Context, k reconcile.Key) (reconcile.Seen, error) {
	spec, err := p.manager.Spec(pods.Key(k))
	if err != nil {
		return reconcile.Seen{}, err
	}
	all, err := witness.Commands(p.manager.UsageDir(pods.Key(k)), spec.Task.Key)
	var out reconcile.Seen
	for _, c := range all {
		if !witness.IsCheck(c.Command, spec.Dev.Agent.Checks) {
			out.Others++
			continue
		}
		seen := reconcile.Command{At: c.At, Command: c.Command}
		if r := c.Result; r != nil {
			seen.Told, seen.Exit, seen.Failed, seen.Tail = true, r.Exit, r.Failed, r.Tail
		}
		out.Checks = append(out.Checks, seen)
	}
	return out, err
}

// Note implements [reconcile.Pods].
func (p *podPort) Note(ctx context.Context, k reconcile.Key, ev reconcile.Evidence) error {
	spec, err := p.manager.Spec(pods.Key(k))
	if err != nil {
		return err
	}
	dir := p.manager.UsageDir(pods.Key(k))
	entries, err := usage.Read(dir)
	if err != nil {
		return err
	}
	sum := usage.Sum(entries)
	n := note{
		At: time.Now().UTC(), Instance: p.instance, Issue: k.String(), RepoID: spec.RepoID,
		Labeler: spec.Pin.Labeler, LabeledAt: spec.Pin.At, LabelID: spec.Pin.EventID, TextHash: spec.Pin.TextHash,
		Agent: spec.AgentName(), Model: spec.Model.Name, Image: spec.AgentBox.Image, Branch: spec.Branch, Base: spec.Base, Evidence: ev,
		Requests: sum.Requests, Tokens: sum.Tokens.Sum(), Cost: sum.Cost.String(), Time: sum.Time,
	}
	if !commitID.MatchString(ev.Commit) {
		return fmt.Errorf("%.100q is no commit", ev.Commit)
	}
	file := filepath.Join(dir, pods.EvidenceFolder, ev.Commit+".json")
	old, err := readNote(file)
	switch {
	case err == nil && old.LabelID == n.LabelID && !ev.Draft:
		return nil
	case err == nil || errors.Is(err, fs.ErrNotExist):
		if n.ImageID, err = p.manager.AgentImageID(ctx, spec); err != nil {
			return err
		}
	default:
		p.log.Warn("evidence that was kept can't be read; it is written anew", "issue", k.String(), "err", err)
	}
	return keepJSON(file, n)
}

// Left implements [reconcile.Pods].
func (p *podPort) Left(_ context.Context, k reconcile.Key) (string, error) {
	return p.left(pods.Key(k))
}

func (p *podPort) left(k pods.Key) (string, error) {
	spec, err := p.manager.Spec(k)
	if err != nil {
		return "", err
	}
	n, err := newestIn(p.manager.UsageDir(k), func(n note) bool { return n.LabelID == spec.Pin.EventID })
	if n == nil {
		return "", err
	}
	return n.Commit, nil
}

func readNote(file string) (n note, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	return n, err
}

// newestNote is the evidence that an issue's pull request left draft with last, nil
// when there is none. It is read where it is kept: the pod may be gone, and the service.
func (a *app) newestNote(ctx context.Context, k reconcile.Key) (*note, error) {
	dir, err := a.transcriptDir(ctx, k)
	if err != nil || dir == "" {
		return nil, err
	}
	return newestIn(dir, func(note) bool { return true })
}

// newestIn is the newest that is kept in an issue's directory, of those that are meant.
func newestIn(dir string, meant func(note) bool) (*note, error) {
	files, err := filepath.Glob(filepath.Join(dir, pods.EvidenceFolder, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []note
	for _, file := range files {
		n, err := readNote(file)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		if meant(n) {
			all = append(all, n)
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	newest := slices.MaxFunc(all, func(a, b note) int { return cmp.Or(a.At.Compare(b.At), strings.Compare(a.Commit, b.Commit)) })
	return &newest, nil
}

func (a *app) evidenceCmd() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "evidence ISSUE", Short: "Tell how an agent's pull request was checked, and where it comes from", Args: args(cobra.ExactArgs(1)),
		Long: "Print what is kept of the commit with which an issue's pull request left draft last: who put the\nlabel on, which agent, model and image, what our own run of the checks, the gate and CI said. It\nis kept when the pod is gone, until devaipod rm --purge or prune.record_age.",
		RunE: func(cmd *cobra.Command, rest []string) error {
			k, err := a.issueKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			n, err := a.newestNote(cmd.Context(), k)
			if err != nil {
				return err
			}
			if n == nil {
				return fmt.Errorf("no pull request of %s has left draft yet, or what was kept of it is pruned", k)
			}
			if a.asJSON {
				return a.printJSON(n)
			}
			return a.printNote(*n)
		},
	})
}

func (a *app) printNote(n note) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	row := func(name, format string, v ...any) {
		if text := fmt.Sprintf(format, v...); text != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, plain(strings.ReplaceAll(text, "\n", " "), 400))
		}
	}
	row("issue", "%s", n.Issue)
	row("pull request", "%s", n.Pull)
	row("commit", "%s", n.Commit)
	row("left its base at", "%s", n.MergeBase)
	row("left draft", "%s", n.At.Local().Format(time.DateTime))
	row("label", "by %s, %s", n.Labeler, n.LabeledAt.Local().Format(time.DateTime))
	row("text", "%s", n.TextHash)
	row("agent", "%s, model %s", n.Agent, n.Model)
	row("image", "%s %s", n.Image, n.ImageID)
	row("used", "%d requests, %d tokens, cost %s", n.Requests, n.Tokens, n.Cost)
	row("changes", "%d files, +%d -%d", n.Files, n.Added, n.Deleted)
	row("own run", "%s %s", n.Check.State, n.Check.Why)
	for _, c := range n.Check.Commands {
		row("", "%s: exit code %d %s", c.Command, c.Exit, c.Why)
	}
	row("gate saw", "%d checks, %d other commands", len(n.Seen.Checks), n.Seen.Others)
	for _, c := range n.Seen.Checks {
		row("", "%s: %s", c.Command, c.Outcome())
	}
	row("CI", "%s", n.CI.State)
	for _, j := range n.CI.Jobs {
		row("", "%s: %s", j.Name, j.State)
	}
	return w.Flush()
}
