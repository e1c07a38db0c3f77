package job

// A Question is what is asked of workflows before their jobs run: `ci-worker --plan` reads
// it as JSON on its standard input, and answers with a [Plan]. Workflows are hostile, and
// are read by that process alone.
type Question struct {
	// Files are workflows, by their names.
	Files map[string][]byte `json:"files"`
	// Github is the context of that name; event_name says what the workflows run on.
	Github map[string]any    `json:"github"`
	Vars   map[string]string `json:"vars,omitempty"`
	// Inputs are those of a workflow_dispatch.
	Inputs map[string]string `json:"inputs,omitempty"`
	// Job, where it is set, is the one job that is wanted, with those that it needs.
	Job string `json:"job,omitempty"`
	// Needs are what came of the jobs that Job waited for. Where they are given, only
	// Job is answered for, its matrix made of what they gave.
	Needs map[string]Need `json:"needs,omitempty"`
}

// A Plan is the workflows that run, by their names in order.
type Plan struct {
	Workflows []Workflow `json:"workflows"`
	// Others are those that do not, each with what it runs on.
	Others map[string][]string `json:"others,omitempty"`
	// History says that a step wants more than the last commit (fetch-depth: 0).
	History bool `json:"history,omitempty"`
}

// A Workflow is one of a plan.
type Workflow struct {
	File string `json:"file"`
	Name string `json:"name"`
	// Inputs have their defaults.
	Inputs map[string]string `json:"inputs,omitempty"`
	// Jobs come after those that they need.
	Jobs []Planned `json:"jobs"`
}

// A Planned job is one of a workflow, before its matrix.
type Planned struct {
	ID    string   `json:"id"`
	Needs []string `json:"needs,omitempty"`
	// If says that it has a condition, by which it may run though one that it needs failed.
	If bool `json:"if,omitempty"`
	// Runs are what a runner is given, one for each combination of the matrix. There are
	// none where Later says that the matrix is made of what other jobs give, or where
	// Reason says why the job can't be run.
	Runs   []Run  `json:"runs,omitempty"`
	Later  bool   `json:"later,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// A Run is one job as a runner is given it.
type Run struct {
	Name     string   `json:"name"`
	Steps    []string `json:"steps"`    // their names
	Workflow []byte   `json:"workflow"` // of the one job, see [Spec]
}

// MaxJobs is how many jobs a workflow may have, with each combination of a matrix counted:
// https://docs.github.com/en/actions/reference/limits.
const MaxJobs = 256
