// Package job is the contract between the service and the process that runs one job of
// a workflow: a [Spec] as JSON on its standard input, [Event]s as lines of JSON on its
// standard output. What runs the job reads what hostile containers answer, so it is a
// process of its own, which holds no more than this job may have.
package job

import "time"

// A Spec is all that there is to one job.
type Spec struct {
	// Workflow is a workflow of one job with its matrix expanded, in YAML, as the
	// forge gives it to a runner.
	Workflow []byte `json:"workflow"`
	// Github is the context of that name, with the event in it.
	Github map[string]any `json:"github"`
	// Secrets are given to the job and taken out of all that it prints.
	Secrets map[string]string `json:"secrets,omitempty"`
	Vars    map[string]string `json:"vars,omitempty"`
	// Env is in the environment of each step.
	Env map[string]string `json:"env,omitempty"`
	// Needs is what came of the jobs that this one waited for, by their ids.
	Needs map[string]Need `json:"needs,omitempty"`
	// Images says which image a label of runs-on stands for.
	Images map[string]string `json:"images"`
	// Docker is the unix socket of the Docker API that the job is run by.
	Docker string `json:"docker"`
	// Actions is the address under which HOST/OWNER/REPO.git of remote actions are found.
	Actions string `json:"actions"`
	// Dir, where it is set, is a directory of this machine whose files actions/checkout
	// brings, in place of a repository's: `devaipod ci run --local`.
	Dir string `json:"dir,omitempty"`
	// Timeout is how long the job may take in all, nanoseconds.
	Timeout time.Duration `json:"timeout"`
}

// A Need is what came of another job.
type Need struct {
	Result  string            `json:"result"`
	Outputs map[string]string `json:"outputs,omitempty"`
}

// Results, of jobs and steps.
const (
	Success   = "success"
	Failure   = "failure"
	Cancelled = "cancelled"
	Skipped   = "skipped"
)

// Steps that are none of the workflow's. Those of the workflow count from 0.
const (
	SetUp    = -1
	Complete = -2
)

// BuildLine begins what the service tells, by act, of the build of an action's image: act
// logs it among what is for itself alone.
const BuildLine = "Dockerfile: "

// An Event is one thing that happened. Exactly one of Line, Began, Ended, Summary and
// Result is set.
type Event struct {
	Time time.Time `json:"time"`
	// Step is where it happened.
	Step int `json:"step"`
	// Line is of the log, without its end, as a runner of the forge would write it:
	// `::error::` and the like stay as they are, secrets do not.
	Line *string `json:"line,omitempty"`
	// Began says that the step has begun.
	Began bool `json:"began,omitempty"`
	// Ended is the step's result.
	Ended string `json:"ended,omitempty"`
	// Summary is what the step wrote to GITHUB_STEP_SUMMARY.
	Summary string `json:"summary,omitempty"`
	// Result is the job's, and the last event. Reason says in a line why it could not
	// be run at all, where that is so.
	Result  string            `json:"result,omitempty"`
	Reason  string            `json:"reason,omitempty"`
	Outputs map[string]string `json:"outputs,omitempty"`
}

// Bounds on what is made of a job.
const (
	MaxLine    = 64 << 10 // bytes of a line; the rest of it is cut off, and said to be
	MaxSummary = 1 << 20  // bytes
	MaxOutputs = 1 << 20  // bytes, of all together
)
