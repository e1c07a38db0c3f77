package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrGone is what a Forge answers for an issue or repository that is not there
// (any more).
var ErrGone = errors.New("gone")

// ErrRefused is what a Forge answers when it will never do what was asked.
var ErrRefused = errors.New("refused")

// ErrUndone is what a Forge answers when a label was taken off. The issue may
// have been read before that, or the label put on again since.
var ErrUndone = errors.New("the label was just taken off, or put on again")

// ErrReadOnly is what a Forge answers for a repository that takes no changes.
var ErrReadOnly = errors.New("the repository is archived")

// ErrTooMany is what a Forge answers when more has changed than it can list.
var ErrTooMany = errors.New("too many")

// ErrLater is what Pods answers while what was asked for is under way: it is to be
// asked again.
var ErrLater = errors.New("not yet")

// A Key names one issue. Its Name is "": the loop has no part in people's
// workspaces.
type Key struct {
	Owner, Repo string
	Issue       int64
	Name        string `json:",omitempty"`
}

// String is the key as people write it: owner/repo#3.
func (k Key) String() string { return fmt.Sprintf("%s/%s#%d", k.Owner, k.Repo, k.Issue) }

// An Issue as the forge has it now.
type Issue struct {
	Key
	RepoID              int64 // which stays when the repository is renamed
	Title, Body, Author string
	Ref                 string // the branch that the issue names, if any
	Open                bool
	Labels              []string
	Updated             time.Time // of the issue's text, labels or comments
	URL                 string
	IsPull              bool // a pull request: Changed alone tells of them
	Created             time.Time
	// Calls says that its text mentions the bot; of one that [Caller.Called] lists, that
	// somebody may have called otherwise.
	Calls bool
}

// A Trigger is the event that put the trigger label on an issue.
type Trigger struct {
	ID    int64 // of the event, so that the same label put on again is another
	User  string
	At    time.Time
	Agent string // that the label names (devaipod:fast), "" for none
	// Calls are how people called since a trigger label was put on or taken off before
	// it, the oldest first; First says that none ever was.
	Calls []Call
	First bool
	// Away says that the bot was assigned, and is not any more, since then; AwayBy whose
	// doing that is.
	Away   bool
	AwayBy string
}

// A Comment on an issue.
type Comment struct {
	ID           int64
	Author, Body string
	Updated      time.Time
	pull         bool // it is on the pull request; the loop knows
}

// A Pull is a pull request of one of our branches.
type Pull struct {
	Number              int64
	URL                 string
	Open, Merged, Draft bool
	ClosedAt            time.Time // also when merged
	Updated             time.Time // of its text, comments or reviews
	MergeBase           string    // the commit where its branch left the base
	Head, Base          string    // its newest commit, and the branch that it goes to
	BaseHead            string    // that one's newest commit
}

// A Commit of a branch that its base does not have.
type Commit struct {
	SHA     string `json:"sha"`
	Subject string `json:"subject"`
}

// A FileChange is one line of a diff stat.
type FileChange struct {
	Path           string
	Added, Deleted int
}

// A PullText is what we write into a pull request.
type PullText struct {
	Title, Body string
	Draft       bool
	Number      int64 // of the pull request that is meant; 0 to open one
}

// Forge is what the loop needs of a forge. All methods may be called
// concurrently; those that write are idempotent.
type Forge interface {
	Caller
	// Wanted lists the open issues that carry a trigger label, as they were at
	// asOf, by the forge's clock; that is zero when the forge does not tell.
	Wanted(ctx context.Context) (found []Issue, asOf time.Time, err error)
	// Changed lists the issues and pull requests of any state that changed at
	// since, by the forge's clock, or later; ErrTooMany when it can't.
	Changed(ctx context.Context, since time.Time) (found []Issue, asOf time.Time, err error)
	// Issue reads one issue; ErrGone when there is none. When the repository has
	// been renamed, the Key in the answer is what it is called now.
	Issue(ctx context.Context, k Key) (Issue, error)
	// Trigger finds the newest event that put a trigger label there; false when the
	// forge knows of none, ErrUndone when none is there any more.
	Trigger(ctx context.Context, k Key) (Trigger, bool, error)
	// CanWrite asks whether an account may push code. Any doubt is an error.
	CanWrite(ctx context.Context, k Key, user string) (bool, error)
	// Comments lists what people said on the issue, ours left out.
	Comments(ctx context.Context, k Key) ([]Comment, error)
	// DefaultBranch names the repository's; ok is false for an empty repository,
	// ErrReadOnly for an archived one.
	DefaultBranch(ctx context.Context, k Key) (name string, ok bool, err error)
	// HasBranch tells whether the repository has a branch.
	HasBranch(ctx context.Context, k Key, name string) (bool, error)

	// SetState makes agent/<state> the issue's only state label; "" takes it off.
	SetState(ctx context.Context, i Issue, s State) error
	// Unlabel takes the trigger labels off.
	Unlabel(ctx context.Context, k Key) error
	// Close closes an issue whose pull request has come to a branch, if that is the
	// repository's default one.
	Close(ctx context.Context, k Key, branch string) error
	// Say puts a comment of ours with that subject, or changes the one there.
	Say(ctx context.Context, k Key, subject, body string) error
	// Resay changes the comment with that subject, if there is one.
	Resay(ctx context.Context, k Key, subject, body string) error

	// Pull finds the newest pull request from a branch of ours.
	Pull(ctx context.Context, k Key, branch string) (Pull, bool, error)
	// Ahead lists the commits that branch has and base has not, oldest first;
	// none also when the branch is not there.
	Ahead(ctx context.Context, k Key, base, branch string) ([]Commit, error)
	// Changes is the diff stat of a pull request.
	Changes(ctx context.Context, k Key, pull int64) ([]FileChange, error)
	// PutPull opens the pull request, or brings the open one to text; one with a number
	// that is not open any more stays as it is.
	PutPull(ctx context.Context, k Key, branch, base string, text PullText) (Pull, error)
	// CI tells what CI says of a commit, and what is known of the jobs that failed.
	CI(ctx context.Context, k Key, commit string) (CI, error)
	// Reviews lists a pull request's that were submitted, the oldest first, ours too.
	Reviews(ctx context.Context, k Key, pull int64) ([]PullReview, error)
	// Answer answers a line comment in its thread.
	Answer(ctx context.Context, k Key, pull int64, to LineComment, body string) error
	// RequestReview asks somebody, once; ErrRefused for who can't be asked.
	RequestReview(ctx context.Context, k Key, pull int64, user string) error
}

// A Task is what a new pod is made from.
type Task struct {
	Key      // of the pod
	RepoID   int64
	Title    string
	Branch   string
	Base     string
	Prompt   string
	Model    string // "" for the configured one
	Trigger  Trigger
	TextHash string // of the text that the labeler saw
}

// A Pod as it is found. Its Key is the issue's when it was made: the repository
// may have been renamed since.
type Pod struct {
	Key
	RepoID       int64
	Name         string
	TriggerID    int64
	TriggerAt    time.Time
	Labeler      string
	Branch, Base string
	// Whole says that all its parts are there and run, Stopped that all are there
	// and none runs.
	Whole, Stopped bool
	Created        time.Time // when its agent's container was made, zero if it is not there
	Started        time.Time
	Entered        time.Time // when a person was last in its workspace, to a minute; zero for never
	// Exit says in words how the agent's container ended, "" while it runs or
	// when it was stopped by us.
	Exit string
	// Full says in words that the pod uses more disk than it may, "" when not.
	Full string
}

// AgentState is what the pod-api tells of the agent.
type AgentState string

// The agent's states, as podapi names them.
const (
	AgentStarting AgentState = "starting"
	AgentReady    AgentState = "ready"
	AgentWorking  AgentState = "working"
	AgentAsking   AgentState = "asking"
	AgentFailed   AgentState = "failed"

	AgentIdleWithWork AgentState = "idle-with-work"
	AgentIdleWithout  AgentState = "idle-without"

	AgentGone AgentState = "gone" // with its pod
)

// A Summary is what the pod-api says now. Its texts are the agent's: hostile.
type Summary struct {
	State    AgentState
	Since    time.Time // when State last changed, or a turn ended; zero if not known
	Cause    Cause     // why it is asking or has failed
	Activity string    // one line: what it does now
	Message  string    // its last words
	Question string
	Choices  []string // the answers that there are, if only these are
	// Mark names what it asks, or the turn that has ended: the same for the same thing.
	Mark    string
	Error   string
	Version string  // in words, when it is not the one that was tested
	Blocked []Block // hosts that it was refused
	Setups  []Setup
}

// A Setup is what a container of a pod says of the commands that it runs before
// its work: hostile.
type Setup struct {
	Container string // agent or workspace
	Stage     string
	Error     string // "" while it runs
}

// A Block is a host that an agent was refused, and still would be.
type Block struct {
	Host  string
	Port  uint16
	Why   string
	Allow string // what would allow it, "" when nothing does
	Count int64
	Last  time.Time
}

// Cause is why an agent waits for a person or has failed. What a person should
// do about it differs.
type Cause string

// The causes. The first ten are the pod-api's, as podapi names them.
const (
	CauseQuestion    Cause = "question"     // it asked something
	CausePermission  Cause = "permission"   // it wants to be allowed something
	CauseBudget      Cause = "budget"       // what may be spent is spent
	CauseRefused     Cause = "refused"      // the model refused: key, name or request
	CauseLimited     Cause = "limited"      // the model's limit of use is reached
	CauseModel       Cause = "model"        // the model does not answer, or nonsense
	CauseStalled     Cause = "stalled"      // no progress, also after being asked to go on
	CauseInterrupted Cause = "interrupted"  // killed in its turn, and did not go on
	CauseSilent      Cause = "silent"       // the agent's server does not answer
	CauseError       Cause = "error"        // anything else that it reported
	CauseNothing     Cause = "nothing-done" // its turn ended without a pushed commit
	CauseDied        Cause = "died"         // its containers end by themselves
	CauseUnreachable Cause = "unreachable"  // the pod-api does not answer
	CauseDeadline    Cause = "deadline"     // it worked for too long
	CauseStart       Cause = "start"        // its pod can't be started
	CauseDisk        Cause = "disk"         // it used more disk than it may
	CauseCI          Cause = "ci"           // CI has failed, and the agent is told of it no more
	CauseApproval    Cause = "ci-person"    // a job of CI needs a person; its work is for review
)

// Pods is what the loop needs of the pods. All methods are idempotent.
type Pods interface {
	List(ctx context.Context) ([]Pod, error)
	// Begin makes the pod of a task. A pod of an earlier trigger is made anew
	// with its work kept.
	Begin(ctx context.Context, t Task) error
	// Resume makes whole and starts what is there.
	Resume(ctx context.Context, k Key) error
	// Stop ends its processes and keeps its work.
	Stop(ctx context.Context, k Key) error
	// Remove leaves nothing of it, once what its agent did is saved.
	Remove(ctx context.Context, k Key) error
	// Keep stores a task that may start and has not yet, for Kept to find also
	// after a restart; nil forgets it.
	Keep(k Key, t *Task) error
	// Kept finds the task that was kept, nil when there is none.
	Kept(k Key) (*Task, error)
	// Waiting lists the issues of which a task is kept.
	Waiting() ([]Key, error)
	// Steer brings what a pod may do up to the configuration and to orders.
	Steer(ctx context.Context, k Key, o Orders) (Steered, error)
	// Summary asks the pod-api.
	Summary(ctx context.Context, k Key) (Summary, error)
	// Check tells what came of our own run of the repository's checks on a commit of
	// the pod's branch. It begins one where there is none, and ends one of another
	// commit; the loop is kicked at its end.
	Check(ctx context.Context, k Key, commit string) (Check, error)
	// Seen tells what the pod's gate saw the agent run since its label was put on.
	Seen(ctx context.Context, k Key) (Seen, error)
	// Note keeps the evidence that a pull request leaves draft with, beyond the pod. Of
	// one that is no draft any more it keeps what is not kept yet.
	Note(ctx context.Context, k Key, ev Evidence) error
	// Heed keeps, with the pod, which comment asked for another try last and was seen to;
	// Heeded tells it, 0 for none.
	Heed(k Key, comment int64) error
	Heeded(k Key) (comment int64, err error)
	// Left tells the commit with which the pull request left draft last since the pod's
	// label was put on, "" when nothing is kept of one.
	Left(ctx context.Context, k Key) (commit string, err error)
	// Pushed tells whether a pod's agent has brought a branch to a commit by its newest push to it.
	Pushed(ctx context.Context, k Key, branch, commit string) (bool, error)
	// Rounds are the messages about CI that the pod's agent was given, the oldest first.
	Rounds(k Key) ([]Round, error)
	// KeepRound keeps a round in the place of the one with its ID, or behind all.
	KeepRound(k Key, r Round) error
	// ForgiveRounds makes all rounds so far of no person's word, so that none counts.
	ForgiveRounds(k Key) error
	// TellCI gives the agent a round's text, once for each ID, however often it is called.
	TellCI(ctx context.Context, k Key, r Round) error
	// Given is what the pod's agent was given of people's words, the oldest first.
	Given(k Key) ([]Given, error)
	// KeepGiven keeps one in the place of that with its ID, or behind all.
	KeepGiven(k Key, g Given) error
	// Tell gives the agent what people said, once for each id, however often it is called.
	Tell(ctx context.Context, k Key, id, text string) error
}
