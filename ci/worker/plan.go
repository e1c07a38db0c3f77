package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/nektos/act/pkg/model"
	"gopkg.in/yaml.v3"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// Bounds on a plan.
const (
	maxProduct  = 10_000   // combinations of a matrix before what it excludes
	maxIncludes = 1000     // includes and excludes, of each
	maxOneJob   = 4 << 20  // bytes of a workflow of one job, aliases put into their places
	maxPlan     = 64 << 20 // bytes of all of them
)

// Plan reads a job.Question from stdin and writes a job.Plan to stdout. Like [Main] it is
// made for a process of its own. The error is what the workflows can't run for.
func Plan(ctx context.Context, stdin io.Reader, stdout io.Writer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the workflow can't be read: %v", p)
		}
	}()
	var q job.Question
	in := json.NewDecoder(io.LimitReader(stdin, maxSpec))
	in.UseNumber()
	if err := in.Decode(&q); err != nil {
		return fmt.Errorf("reading what is asked: %w", err)
	}
	if err := setEnvironment(&job.Spec{}, os.TempDir()); err != nil {
		return err
	}
	p := &planner{Question: q, ctx: newReport(io.Discard, &job.Spec{}, func() {}).logger(ctx)}
	plan, err := p.plan()
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(plan)
}

// A planner answers one question.
type planner struct {
	job.Question
	ctx  context.Context
	size int // of all that was written
}

func (p *planner) plan() (*job.Plan, error) {
	plan := &job.Plan{Workflows: []job.Workflow{}, Others: map[string][]string{}}
	for _, file := range slices.Sorted(maps.Keys(p.Files)) {
		doc, err := parse(p.Files[file])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		on := events(doc)
		if !slices.Contains(on, text(p.Github["event_name"])) {
			plan.Others[file] = on
			continue
		}
		w, err := p.workflow(file, doc)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if len(w.Jobs) > 0 {
			plan.Workflows = append(plan.Workflows, *w)
			plan.History = plan.History || history(doc)
		}
	}
	return plan, nil
}

// value is what key has in a mapping, nil for nothing.
func value(node *yaml.Node, key string) *yaml.Node {
	if node != nil && node.Kind == yaml.DocumentNode && len(node.Content) == 1 {
		node = node.Content[0]
	}
	if node == nil || node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 1; i < len(node.Content); i += 2 {
		if node.Content[i-1].Value == key {
			return node.Content[i]
		}
	}
	return nil
}

// events are what a workflow runs on.
func events(doc *yaml.Node) []string {
	on := value(doc, "on")
	switch {
	case on == nil:
		return nil
	case on.Kind == yaml.ScalarNode:
		return []string{on.Value}
	}
	var out []string
	for i, c := range on.Content {
		if on.Kind == yaml.SequenceNode || i%2 == 0 {
			out = append(out, c.Value)
		}
	}
	return out
}

// history tells whether a step of a workflow wants more than the last commit.
func history(node *yaml.Node) bool {
	if depth := value(node, "fetch-depth"); depth != nil && depth.Value == "0" {
		return true
	}
	return slices.ContainsFunc(node.Content, history)
}

// workflow plans a workflow's jobs.
func (p *planner) workflow(file string, doc *yaml.Node) (*job.Workflow, error) {
	var w model.Workflow
	if err := doc.Decode(&w); err != nil {
		return nil, fmt.Errorf("the workflow is not valid: %w", err)
	}
	ids := jobIDs(doc)
	if len(ids) == 0 || len(ids) > job.MaxJobs {
		return nil, fmt.Errorf("the workflow has %d jobs; want 1 to %d", len(ids), job.MaxJobs)
	}
	out := &job.Workflow{File: file, Name: w.Name}
	if out.Name == "" {
		out.Name = file
	}
	var err error
	if out.Inputs, err = p.inputs(&w); err != nil {
		return nil, err
	}
	if ids, err = order(ids, &w, p.Job); err != nil {
		return nil, err
	}
	jobs := 0
	for _, id := range ids {
		if p.Needs != nil && id != p.Job {
			continue
		}
		planned := job.Planned{ID: id, Needs: w.Jobs[id].Needs(), If: w.Jobs[id].If.Value != ""}
		if strategy := value(value(value(doc, "jobs"), id), "strategy"); p.Needs == nil && asksNeeds(strategy) {
			planned.Later = true
		} else if planned.Runs, err = p.runs(doc, id, planned.Needs, out); err != nil {
			planned.Reason = oneLine(err.Error())
		}
		if jobs += max(1, len(planned.Runs)); jobs > job.MaxJobs {
			return nil, fmt.Errorf("with its matrices the workflow has more than %d jobs", job.MaxJobs)
		}
		out.Jobs = append(out.Jobs, planned)
	}
	return out, nil
}

func jobIDs(doc *yaml.Node) []string {
	var ids []string
	if jobs := value(doc, "jobs"); jobs != nil && jobs.Kind == yaml.MappingNode {
		for i := 0; i < len(jobs.Content); i += 2 {
			ids = append(ids, jobs.Content[i].Value)
		}
	}
	return ids
}

var needsContext = regexp.MustCompile(`(?i)\bneeds\b`)

// asksNeeds tells whether an expression in node may be about what other jobs give.
func asksNeeds(node *yaml.Node) bool {
	if node == nil {
		return false
	}
	if node.Kind == yaml.ScalarNode && strings.Contains(node.Value, "${{") && needsContext.MatchString(node.Value) {
		return true
	}
	return slices.ContainsFunc(node.Content, asksNeeds)
}

// order sorts jobs so that each comes after those that it needs; where one is wanted, it
// and those that it needs are all.
func order(ids []string, w *model.Workflow, wanted string) (sorted []string, err error) {
	state := map[string]int{} // 1: begun, 2: done
	var path []string
	var visit func(id string) error
	visit = func(id string) error {
		path = append(path, id)
		defer func() { path = path[:len(path)-1] }()
		switch {
		case state[id] == 1:
			return fmt.Errorf("the jobs wait for each other: %s", strings.Join(path[slices.Index(path, id):], " needs "))
		case state[id] == 2:
			return nil
		case w.Jobs[id] == nil:
			return fmt.Errorf("the job %s is empty", id)
		}
		state[id] = 1
		for _, need := range w.Jobs[id].Needs() {
			if !slices.Contains(ids, need) {
				return fmt.Errorf("the job %s needs %s, which the workflow has not", id, need)
			}
			if err := visit(need); err != nil {
				return err
			}
		}
		state[id] = 2
		sorted = append(sorted, id)
		return nil
	}
	for _, id := range ids {
		if wanted != "" && id != wanted {
			continue
		}
		if err := visit(id); err != nil {
			return nil, err
		}
	}
	return sorted, nil
}

// inputs are those that are given, and the defaults of the others.
func (p *planner) inputs(w *model.Workflow) (map[string]string, error) {
	if text(p.Github["event_name"]) != "workflow_dispatch" {
		return nil, nil
	}
	out, known := map[string]string{}, map[string]model.WorkflowDispatchInput{}
	if c := w.WorkflowDispatchConfig(); c != nil {
		known = c.Inputs
	}
	for name := range p.Inputs {
		if _, ok := known[name]; !ok {
			return nil, fmt.Errorf("it has no input %s; it has %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		in := known[name]
		v, given := p.Inputs[name]
		if !given {
			v = in.Default
		}
		switch {
		case v == "" && in.Required:
			return nil, fmt.Errorf("it wants the input %s", name)
		case v != "" && in.Type == "choice" && !slices.Contains(in.Options, v):
			return nil, fmt.Errorf("the input %s is %q; it is one of %s", name, v, strings.Join(in.Options, ", "))
		case v != "" && in.Type == "boolean" && v != "true" && v != "false":
			return nil, fmt.Errorf("the input %s is %q; it is true or false", name, v)
		}
		out[name] = v
	}
	return out, nil
}

// runs are what a runner is given of a job, one for each combination of its matrix.
func (p *planner) runs(doc *yaml.Node, id string, needs []string, w *job.Workflow) ([]job.Run, error) {
	one, err := single(doc, id, nil)
	if err != nil {
		return nil, err
	}
	spec := &job.Spec{Workflow: one, Github: maps.Clone(p.Github), Vars: p.Vars, Needs: map[string]job.Need{}}
	spec.Github["workflow"] = w.Name
	for _, name := range needs {
		need, ok := p.Needs[name]
		if !ok {
			need.Result = job.Success // what is asked of it is asked later
		}
		spec.Needs[name] = need
	}
	if w.Inputs != nil {
		spec.Github["event"] = map[string]any{"inputs": w.Inputs}
	}
	run, err := read(spec)
	if err != nil {
		return nil, err
	}
	j, err := begin(spec, run, "")
	if err != nil {
		return nil, err
	}
	all, err := j.combinations(j.log(p.ctx))
	if err != nil {
		return nil, err
	}
	var out []job.Run
	for _, c := range all {
		text, err := single(doc, id, c)
		if err != nil {
			return nil, err
		}
		if p.size += len(text); p.size > maxPlan {
			return nil, fmt.Errorf("the jobs have more than %d bytes, all together", maxPlan)
		}
		out = append(out, job.Run{Name: oneLine(j.name(j.log(p.ctx), c)), Steps: stepNames(run.Job()), Workflow: text})
	}
	return out, nil
}

// stepNames are what a job's steps are called, where people read of them.
func stepNames(j *model.Job) []string {
	var names []string
	for _, s := range j.Steps {
		name := s.Name
		if name == "" {
			name = s.Uses
		}
		if name == "" {
			name, _, _ = strings.Cut("Run "+strings.TrimSpace(s.Run), "\n")
		}
		names = append(names, cut(oneLine(name), 255, "…"))
	}
	return names
}

// combinations are those of the job's matrix; one of nothing, where it has none.
func (j *theJob) combinations(ctx context.Context) ([]map[string]any, error) {
	s := j.rc.Run.Job().Strategy
	if s == nil || s.RawMatrix.Kind == 0 {
		return []map[string]any{nil}, nil
	}
	j.rc.ExprEval = j.rc.NewExpressionEvaluator(ctx)
	if err := j.rc.ExprEval.EvaluateYamlNode(ctx, &s.RawMatrix); err != nil {
		return nil, fmt.Errorf("the matrix: %w", err)
	}
	product := 1
	for name, values := range j.rc.Run.Job().Matrix() {
		switch {
		case name == "include" || name == "exclude":
			if len(values) > maxIncludes {
				return nil, fmt.Errorf("the matrix has %d of %s; at most %d are read", len(values), name, maxIncludes)
			}
		case len(values) == 0:
			return nil, fmt.Errorf("the matrix has no value for %s", name)
		case len(values) > maxProduct/product:
			return nil, fmt.Errorf("the matrix has more than %d combinations", maxProduct)
		default:
			product *= len(values)
		}
	}
	all, err := j.rc.Run.Job().GetMatrixes()
	if err != nil {
		return nil, fmt.Errorf("the matrix: %w", err)
	}
	if len(all) > job.MaxJobs {
		return nil, fmt.Errorf("the matrix has %d combinations; at most %d are run", len(all), job.MaxJobs)
	}
	slices.SortFunc(all, func(a, b map[string]any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return all, nil
}

// name is the job's, with what its matrix has, as the forge shows it.
func (j *theJob) name(ctx context.Context, combination map[string]any) string {
	j.rc.Matrix = combination
	name := j.rc.Run.String()
	if strings.Contains(name, "${{") {
		return j.rc.NewExpressionEvaluator(ctx).Interpolate(ctx, name)
	}
	var values []string
	for _, k := range slices.Sorted(maps.Keys(combination)) {
		values = append(values, fmt.Sprint(combination[k]))
	}
	if len(values) == 0 {
		return name
	}
	return name + " (" + strings.Join(values, ", ") + ")"
}

// single is the workflow with one of its jobs, and one combination of that job's matrix,
// nil for its matrix as it is.
func single(doc *yaml.Node, id string, combination map[string]any) ([]byte, error) {
	own := value(value(doc, "jobs"), id)
	if combination != nil {
		strategy, err := oneCombination(value(own, "strategy"), combination)
		if err != nil {
			return nil, err
		}
		own = with(own, "strategy", strategy)
	}
	jobs := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	out := with(doc.Content[0], "jobs", with(jobs, id, own))
	if weight(out) > maxOneJob {
		return nil, fmt.Errorf("the job %s has more than %d bytes, with aliases followed", id, maxOneJob)
	}
	return yaml.Marshal(out)
}

// oneCombination is a strategy whose matrix is one combination. What steps gave must not
// become an expression in it.
func oneCombination(strategy *yaml.Node, combination map[string]any) (*yaml.Node, error) {
	lists := map[string][]any{}
	for k, v := range combination {
		lists[k] = []any{v}
	}
	var matrix yaml.Node
	if err := matrix.Encode(lists); err != nil {
		return nil, err
	}
	if hasExpression(&matrix) {
		return nil, errors.New("a value of the matrix holds an expression, which it may not once it was evaluated")
	}
	if len(lists) == 0 {
		return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}, nil
	}
	return with(strategy, "matrix", &matrix), nil
}

func hasExpression(node *yaml.Node) bool {
	return strings.Contains(node.Value, "${{") || slices.ContainsFunc(node.Content, hasExpression)
}

// with is a mapping in which key has another value.
func with(mapping *yaml.Node, key string, v *yaml.Node) *yaml.Node {
	out := *mapping
	out.Content = slices.Clone(mapping.Content)
	for i := 1; i < len(out.Content); i += 2 {
		if out.Content[i-1].Value == key {
			out.Content[i] = v
			return &out
		}
	}
	out.Content = append(out.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, v)
	return &out
}

// weight is how many bytes of text a node has, or a little less.
func weight(node *yaml.Node) int {
	n := len(node.Value) + 1
	for _, c := range node.Content {
		if n += weight(c); n > maxOneJob {
			break
		}
	}
	return n
}
