package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/nektos/act/pkg/model"
	"github.com/nektos/act/pkg/runner"
	"gopkg.in/yaml.v3"

	"codeberg.org/devaipod/devaipod/ci/job"
)

type yamlNode = yaml.Node

// Bounds on a workflow.
const (
	maxWorkflow = 1 << 20 // bytes
	maxNodes    = 100_000 // with aliases followed
	maxDepth    = 100
)

// read reads the one job of spec's workflow, with its needs beside it, and refuses
// what can't be run.
func read(spec *job.Spec) (*model.Run, error) {
	doc, err := parse(spec.Workflow)
	if err != nil {
		return nil, err
	}
	var w model.Workflow
	if err := doc.Decode(&w); err != nil {
		return nil, fmt.Errorf("the workflow is not valid: %w", err)
	}
	if len(w.Jobs) != 1 {
		return nil, fmt.Errorf("the workflow has %d jobs; a runner is given one at a time", len(w.Jobs))
	}
	id := slices.Collect(maps.Keys(w.Jobs))[0]
	j := w.Jobs[id]
	if j == nil {
		return nil, fmt.Errorf("the job %s is empty", id)
	}
	if w.Name == "" {
		w.Name = text(spec.Github["workflow"])
	}
	if err := errors.Join(checkSteps(id, j, spec.Dir != ""), addNeeds(&w, id, spec.Needs)); err != nil {
		return nil, err
	}
	return &model.Run{Workflow: &w, JobID: id}, nil
}

// parse reads a workflow within the bounds, without aliases, and with names that act knows.
func parse(workflow []byte) (*yaml.Node, error) {
	if len(workflow) > maxWorkflow {
		return nil, fmt.Errorf("the workflow has %d bytes; at most %d are read", len(workflow), maxWorkflow)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(workflow, &doc); err != nil {
		return nil, fmt.Errorf("the workflow can't be read: %w", err)
	}
	n := maxNodes
	if err := measure(&doc, &n, maxDepth); err != nil {
		return nil, err
	}
	expand(&doc)
	rename(&doc)
	retype(&doc)
	return &doc, nil
}

// measure counts nodes as one that follows aliases meets them: a few lines of aliases
// of aliases are more than fits any memory.
func measure(node *yaml.Node, n *int, depth int) error {
	if *n--; *n < 0 || depth == 0 {
		return fmt.Errorf("the workflow is too large: it has more than %d values, or they are nested more than %d deep, with aliases followed", maxNodes, maxDepth)
	}
	if node.Kind == yaml.AliasNode {
		return measure(node.Alias, n, depth-1)
	}
	for _, c := range node.Content {
		if err := measure(c, n, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// expand puts what aliases stand for into their places, which act's schema wants; it
// must have been measured.
func expand(node *yaml.Node) {
	for node.Kind == yaml.AliasNode {
		*node = *node.Alias
	}
	node.Anchor, node.Content = "", slices.Clone(node.Content)
	for i, c := range node.Content {
		own := *c
		node.Content[i] = &own
		expand(&own)
	}
}

var (
	expression = regexp.MustCompile(`(?s)\$\{\{(?:'[^']*'|[^'])*?\}\}`)
	token      = regexp.MustCompile(`'(?:[^']|'')*'|\.\s*[\w-]+|[A-Za-z_][\w-]*`)
)

// rename calls the contexts gitea and forgejo, which are what the forges call github,
// by the one name that act knows.
func rename(node *yaml.Node) {
	for i, c := range node.Content {
		if node.Kind == yaml.MappingNode && i%2 == 1 && node.Content[i-1].Value == "if" && !strings.Contains(c.Value, "${{") {
			c.Value = token.ReplaceAllStringFunc(c.Value, renamed)
		}
		rename(c)
	}
	if node.Kind == yaml.ScalarNode && strings.Contains(node.Value, "${{") {
		node.Value = expression.ReplaceAllStringFunc(node.Value, func(e string) string { return token.ReplaceAllStringFunc(e, renamed) })
	}
}

// typed are the keys of jobs, steps and strategies that the forge knows as text, and writes so
// into what it gives to a runner (Job, Step and Strategy of its jobparser).
var typed = []string{"timeout-minutes", "fail-fast", "max-parallel"}

// retype makes numbers and truths of them again.
func retype(node *yaml.Node) {
	for i, c := range node.Content {
		if node.Kind == yaml.MappingNode && i%2 == 1 && c.Kind == yaml.ScalarNode && slices.Contains(typed, node.Content[i-1].Value) && !strings.Contains(c.Value, "${{") {
			c.Tag, c.Style = "", 0
		}
		retype(c)
	}
}

func renamed(name string) string {
	if strings.EqualFold(name, "gitea") || strings.EqualFold(name, "forgejo") {
		return "github"
	}
	return name
}

// checkSteps refuses steps that act trips over, and gives each an id of its own.
func checkSteps(id string, j *model.Job, local bool) error {
	if j.Uses != "" {
		return fmt.Errorf("the job %s calls the workflow %s, which this runner can't: put its steps into the job, or into an action", id, j.Uses)
	}
	if len(j.Steps) == 0 {
		return fmt.Errorf("the job %s has no steps", id)
	}
	seen := map[string]bool{}
	for i, s := range j.Steps {
		switch {
		case s == nil || s.Type() == model.StepTypeInvalid:
			return fmt.Errorf("step %d of the job %s wants either run or uses", i+1, id)
		case s.ID != "" && seen[s.ID]:
			return fmt.Errorf("two steps of the job %s have the id %s", id, s.ID)
		}
		seen[s.ID] = true
		s.Uses = usable(s.Uses, local)
		if local && strings.HasPrefix(s.Uses, "actions/checkout@") && s.With["repository"] == "" {
			delete(s.With, "ref") // whatever it is called, it is what is here
		}
	}
	for i, s := range j.Steps {
		for n := i; s.ID == ""; n += len(j.Steps) {
			if own := fmt.Sprintf("__step_%d", n); !seen[own] {
				s.ID, seen[own] = own, true
			}
		}
	}
	return nil
}

// addNeeds puts what came of the jobs that this one needs beside it, where act looks. The forge
// takes their names out of the job once it has waited for them.
func addNeeds(w *model.Workflow, id string, needs map[string]job.Need) error {
	if raw := &w.Jobs[id].RawNeeds; raw.IsZero() && len(needs) > 0 {
		if err := raw.Encode(slices.Sorted(maps.Keys(needs))); err != nil {
			return err
		}
	}
	for _, name := range w.Jobs[id].Needs() {
		need, ok := needs[name]
		switch {
		case name == id:
			return fmt.Errorf("the job %s needs itself", id)
		case !ok:
			return fmt.Errorf("the job %s needs %s, of which the forge tells nothing", id, name)
		}
		w.Jobs[name] = &model.Job{Name: name, Result: need.Result, Outputs: need.Outputs}
	}
	return nil
}

// matrixOf is the one combination of a matrix that the forge chose for the job.
func matrixOf(ctx context.Context, rc *runner.RunContext) (map[string]any, error) {
	j := rc.Run.Job()
	if j.Strategy == nil {
		return nil, nil
	}
	if err := rc.ExprEval.EvaluateYamlNode(ctx, &j.Strategy.RawMatrix); err != nil {
		return nil, fmt.Errorf("the matrix: %w", err)
	}
	more := errors.New("the matrix has more than one combination; a runner is given one at a time")
	for name, values := range j.Matrix() {
		if name != "include" && name != "exclude" && len(values) > 1 {
			return nil, more
		}
	}
	all, err := j.GetMatrixes()
	if err != nil {
		return nil, fmt.Errorf("the matrix: %w", err)
	}
	if len(all) != 1 {
		return nil, more
	}
	return all[0], nil
}

// platforms are the images for the labels that the job runs on, as act wants them.
func platforms(ctx context.Context, rc *runner.RunContext, images map[string]string) (map[string]string, error) {
	j := rc.Run.Job()
	if err := rc.ExprEval.EvaluateYamlNode(ctx, &j.RawRunsOn); err != nil {
		return nil, fmt.Errorf("runs-on: %w", err)
	}
	labels := j.RunsOn()
	if len(labels) == 0 {
		return nil, fmt.Errorf("the job %s does not say what it runs on (runs-on)", rc.Run.JobID)
	}
	known := map[string]string{}
	for label, image := range images {
		known[strings.ToLower(label)] = image
	}
	out := map[string]string{}
	for _, label := range labels {
		image := known[strings.ToLower(label)]
		// That name of an image would have act run the job on this machine itself.
		if image == "" || strings.EqualFold(image, "-self-hosted") {
			return nil, fmt.Errorf("runs-on %s: no image is configured for that label; there is one for %s", label, strings.Join(slices.Sorted(maps.Keys(images)), ", "))
		}
		out[strings.ToLower(label)] = image
	}
	return out, nil
}
