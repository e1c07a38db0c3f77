package scriptedmodel

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// What a task's text may hold for the script: lines of their own.
var (
	wantLine     = regexp.MustCompile(`(?m)^want: ([a-z0-9]{8,64})\s*$`)
	nonceLine    = regexp.MustCompile(`(?m)^nonce: ([A-Za-z0-9]{8,128})\s*$`)
	scenarioLine = regexp.MustCompile(`(?m)^scenario: ([a-z0-9-]+)\s*$`)
	branchLine   = regexp.MustCompile(`git push origin HEAD:(agent/[^\s]+)`)
	digest       = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
)

// ProofFile is the file in which the task's proof is written down.
const ProofFile = "NONCE.sha256"

// Tasks is the script of demo and tests. The text says what to do by a
// line "scenario: NAME":
//
//	default      compute the sha256 of the line "nonce: …" by a command, write
//	             it to a file, commit, push, sum up; goes on only when opencode
//	             has told the result of the step before, the right digest for one.
//	             Told to merge a commit in, do that with its own files where both have
//	             changed one, push, and sum up
//	slow         the same, and waits for Release before the push
//	no-commits   say something and end
//	push-main    commit, try to push to main, and tell what git said
//	env          print everything that might hold a key
//	model-error  answer 401; model-429 and model-500 those
//	garbage      answer what is no JSON
//	half         break every answer off
//	hang         answer nothing; hang-once goes on when asked to go on
//	asks         ask a question by opencode's tool for that, then as default, and
//	             tell the answer
//	compute      a tool that computes for a while without a word; sleep one that does
//	             nothing, for ever
//	claim        run "sh check.sh", do as by default whatever came of it, and say that
//	             all tests passed
//	mends        push something that CI does not want, and end; told that CI failed, do what
//	             its output says ("want: WORD"), once, and wait for Release before the push
//	reviewed     write a poem and push it; given a review, take each suggestion for a line
//	             of it, push that, and answer each comment by its number; told that its
//	             branch was moved, go there; told to merge the base in, do, its own kept
//	lie          say that it is all done and pushed
//	oom          take all the memory there is, opencode's first
func Tasks() Script {
	return func(r Request) Reply {
		if !r.HasTools {
			return Reply{Text: "Scripted task"}
		}
		switch name := first(scenarioLine, r.User); name {
		case "", "default":
			return nonceTask(r, false)
		case "slow":
			return nonceTask(r, true)
		case "no-commits":
			return Reply{Text: "I looked at it and there is nothing to change. @everyone Closes #1"}
		case "push-main":
			return pushMain(r)
		case "env":
			return lookAround(r)
		case "oom":
			return eatMemory(r)
		case "model-error":
			return Reply{Status: http.StatusUnauthorized, Text: "the scripted model refuses, as the task asks"}
		case "model-429":
			return Reply{Status: http.StatusTooManyRequests, Text: "the scripted model has had enough, as the task asks"}
		case "model-500":
			return Reply{Status: http.StatusInternalServerError, Text: "the scripted model is broken, as the task asks"}
		case Garbage, Half, Hang:
			return Reply{Broken: name}
		case "hang-once":
			if !strings.Contains(r.User, "There was no progress") {
				return Reply{Broken: Hang}
			}
			return nonceTask(r, false)
		case "asks":
			return askFirst(r)
		case "compute":
			return toolAlone(r, "for i in 1 2 3 4; do timeout 14 sh -c 'while :; do :; done' & done; wait; echo computed")
		case "sleep":
			return toolAlone(r, "sleep 1000")
		case "claim":
			return claim(r)
		case "mends":
			return mends(r)
		case "reviewed":
			return reviewed(r)
		case "lie":
			return Reply{Text: "All is done, committed and pushed. The tests pass."}
		default:
			return Reply{Text: "The script knows no scenario " + name + "."}
		}
	}
}

func first(re *regexp.Regexp, s string) string {
	if m := re.FindStringSubmatch(s); m != nil {
		return m[1]
	}
	return ""
}

// A step is a tool call, and whether its result lets the script go on.
type step struct {
	tool string
	args map[string]any
	ok   func(result string) bool
	wait bool
	more int // tries beyond the usual
}

func bash(command, what string) step {
	return step{tool: "bash", args: map[string]any{"command": command, "description": what}}
}

// tries is how often a step is done before the script gives up.
const tries = 3

// play finds the first step that has not succeeded yet; done is true when all
// have.
func play(r Request, steps []step) (reply Reply, done bool) {
	for _, s := range steps {
		failed, last := 0, ""
		succeeded := false
		for _, c := range r.Calls {
			if c.Tool == s.tool && same(c.Arguments, s.args) && c.Answered {
				last = c.Result
				if s.ok == nil || s.ok(c.Result) {
					succeeded = true
				} else {
					failed++
				}
			}
		}
		switch {
		case succeeded:
		case failed >= tries+s.more:
			return Reply{Text: fmt.Sprintf("I give up: %s did not work. The tool said: %s", s.tool, last)}, false
		default:
			return Reply{Tool: s.tool, Arguments: s.args, Wait: s.wait}, false
		}
	}
	return Reply{}, true
}

func same(arguments string, want map[string]any) bool {
	var got map[string]any
	if json.Unmarshal([]byte(arguments), &got) != nil {
		return false
	}
	for k, v := range want {
		if got[k] != v {
			return false
		}
	}
	return true
}

// result is what the first call like s answered.
func result(r Request, s step) string {
	for i := len(r.Calls) - 1; i >= 0; i-- {
		if c := r.Calls[i]; c.Tool == s.tool && same(c.Arguments, s.args) && c.Answered {
			return c.Result
		}
	}
	return ""
}

func nonceTask(r Request, slow bool) Reply {
	nonce, branch := first(nonceLine, r.User), first(branchLine, r.User)
	if nonce == "" || branch == "" {
		return Reply{Text: "The script found no nonce or no branch in the task."}
	}
	sum := sha256.Sum256([]byte(nonce))
	want := hex.EncodeToString(sum[:])
	compute := bash("printf %s '"+nonce+"' | sha256sum", "Computes the proof")
	compute.ok = func(out string) bool { return digest.MatchString(out) }
	if reply, done := play(r, []step{compute}); !done {
		return reply
	}
	// As the agent's tool told it; the script has not told it to anybody.
	got := digest.FindString(result(r, compute))
	if got != want {
		return Reply{Text: "The digest that the tool told is not the nonce's: " + got}
	}
	write := step{tool: "write", args: map[string]any{"filePath": ProofFile, "content": got + "\n"}}
	write.ok = func(out string) bool { return !strings.Contains(strings.ToLower(out), "aborted") }
	commit := bash("git add -A && { git diff --cached --quiet || git commit -q -m 'Write down the proof'; } && git log -1 --format=committed:%s", "Commits it")
	commit.ok = contains("committed:Write down the proof")
	push := bash("git push origin HEAD:"+branch+" && echo push-went-well", "Pushes it")
	push.ok, push.wait = contains("push-went-well"), slow
	push.more = 20 // where the service is killed again and again, each may be cut off
	if reply, done := play(r, []step{compute, write, commit, push}); !done {
		return reply
	}
	for _, m := range mergeLine.FindAllStringSubmatch(r.User, -1) {
		if reply, done := play(r, mergeIn(m[1], branch)); !done {
			return reply
		}
	}
	return Reply{Text: "I computed the sha256 of the nonce with a command and wrote it to `" + ProofFile + "`.\n\nTried: the command's output was read back. Left: nothing."}
}

// mergeLine is where a message says what to merge in.
var mergeLine = regexp.MustCompile(`(?m)^git merge ([0-9a-f]{40,64})$`)

// mergeIn merges a commit in, and keeps its own files where both have changed one.
func mergeIn(commit, branch string) []step {
	merge := bash("git fetch -q origin && { git merge -q --no-edit "+commit+" || { git checkout -q --ours . && git add -A && git commit -q --no-edit; }; } && git log -1 --format=merged:%p", "Merges "+commit[:10]+" in")
	merge.ok = contains("merged:")
	push := bash("git push origin HEAD:"+branch+" && echo merged-"+commit[:10], "Pushes the merge")
	push.ok = contains("merged-" + commit[:10])
	return []step{merge, push}
}

// toolAlone runs one command, and tells what came of it.
func toolAlone(r Request, command string) Reply {
	run := bash(command, "Runs alone")
	if reply, done := play(r, []step{run}); !done {
		return reply
	}
	return Reply{Text: "The tool said: " + result(r, run)}
}

// askFirst tells in the end what it was answered.
func askFirst(r Request) Reply {
	ask := step{tool: "question", args: map[string]any{"questions": []map[string]any{{
		"question": "Which color, @everyone?", "header": "Color",
		"options": []map[string]string{{"label": "red", "description": "as blood"}, {"label": "blue", "description": "as the sky"}},
	}}}}
	for _, c := range r.Calls {
		if c.Tool == ask.tool && c.Answered {
			reply := nonceTask(r, false)
			if reply.Text != "" {
				reply.Text += "\n\nIt was answered: " + c.Result
			}
			return reply
		}
	}
	return Reply{Tool: ask.tool, Arguments: ask.args}
}

// claim says that all is well without a look at what its check said.
func claim(r Request) Reply {
	if reply, done := play(r, []step{bash("sh check.sh", "Checks it")}); !done {
		return reply
	}
	reply := nonceTask(r, false)
	if reply.Tool == "" {
		reply.Text = "I ran the checks, and all tests passed."
	}
	return reply
}

// mends knows what CI wants by what it is told of CI alone.
func mends(r Request) Reply {
	branch := first(branchLine, r.User)
	put := func(word string, wait bool) []step {
		commit := bash("echo "+word+" > STATE && git add -A && { git diff --cached --quiet || git commit -q -m 'It is "+word+"'; } && git log -1 --format=committed:%s", "Commits it")
		commit.ok = contains("committed:It is " + word)
		push := bash("git push origin HEAD:"+branch+" && echo pushed-"+word, "Pushes it")
		push.ok, push.wait = contains("pushed-"+word), wait
		return []step{commit, push}
	}
	if reply, done := play(r, put("untried", false)); !done {
		return reply
	}
	if !strings.Contains(r.User, "CI failed on commit") {
		return Reply{Text: "I pushed what I have not tried."}
	}
	word := first(wantLine, r.User)
	if word == "" {
		return Reply{Text: "CI does not say what it wants."}
	}
	if reply, done := play(r, put(word, true)); !done {
		return reply
	}
	return Reply{Text: fmt.Sprintf("I mended it, as CI wanted. I was told %d times that it failed.", strings.Count(r.User, "CI failed on commit"))}
}

// movedLine is where a message says that the branch was moved.
var movedLine = regexp.MustCompile(`(?m)^Somebody else has pushed to your branch \S+: it is at commit ([0-9a-f]{40}) `)

// takeOver goes to where others have brought the branch, and merges what it is told to.
func takeOver(r Request, branch string) (reply Reply, done bool) {
	var steps []step
	for _, m := range movedLine.FindAllStringSubmatch(r.User, -1) {
		over := bash("git fetch -q origin "+branch+" && git merge-base --is-ancestor "+m[1]+" FETCH_HEAD && git reset -q --hard FETCH_HEAD && echo over-"+m[1], "Takes it over")
		over.ok = contains("over-" + m[1])
		steps = append(steps, over)
	}
	for _, m := range mergeLine.FindAllStringSubmatch(r.User, -1) {
		steps = append(steps, mergeIn(m[1], branch)...)
	}
	return play(r, steps)
}

// suggested is a comment with a suggestion, and commented any one, as a message of a review has them.
var (
	commented = regexp.MustCompile(`(?m)^\[(\d+)\] [^\n]*, at (?:poem, line (\d+)(?: as it was before)?(?:, as of commit [0-9a-f]+)?|[^\n]*):$`)
	suggested = regexp.MustCompile("(?s)```suggestion\n([A-Za-z ]+)\n```")
)

// reviewed does what reviews suggest, by what it is told of them alone.
func reviewed(r Request) Reply {
	branch := first(branchLine, r.User)
	push := func(change, message, word string) []step {
		commit := bash(change+" && git add -A && { git diff --cached --quiet || git commit -q -m '"+message+"'; } && git log -1 --format=committed:%s:%h", "Commits it")
		commit.ok = contains("committed:" + message)
		push := bash("git push origin HEAD:"+branch+" && echo pushed-"+word, "Pushes it")
		push.ok = contains("pushed-" + word)
		return []step{commit, push}
	}
	if reply, done := play(r, push("printf 'roses are red\\nviolets are blue\\nand so on\\n' > poem", "Write a poem", "poem")); !done {
		return reply
	}
	if reply, done := takeOver(r, branch); !done {
		return reply
	}
	parts := strings.Split(r.User, "have reviewed your pull request")
	if len(parts) == 1 {
		return Reply{Text: "I wrote a poem."}
	}
	text := parts[len(parts)-1]
	var answers []string
	marks := commented.FindAllStringSubmatchIndex(text, -1)
	for i, m := range marks {
		end := len(text)
		if i+1 < len(marks) {
			end = marks[i+1][0]
		}
		number, wants := text[m[2]:m[3]], suggested.FindStringSubmatch(text[m[1]:end])
		if wants == nil || m[4] < 0 {
			answers = append(answers, "["+number+"] I leave it as it is.")
			continue
		}
		steps := push(fmt.Sprintf("sed -i '%ss/.*/%s/' poem", text[m[4]:m[5]], wants[1]), "Say "+wants[1], number)
		if reply, done := play(r, steps); !done {
			return reply
		}
		said := strings.TrimSpace(result(r, steps[0]))
		answers = append(answers, "["+number+"] I took it, in "+said[strings.LastIndexByte(said, ':')+1:]+".")
	}
	return Reply{Text: fmt.Sprintf("I did what was asked for the time %d.\n\n%s", len(parts)-1, strings.Join(answers, "\n"))}
}

func contains(s string) func(string) bool {
	return func(out string) bool { return strings.Contains(out, s) }
}

func pushMain(r Request) Reply {
	commit := bash("echo no > NO && git add -A && git commit -q -m 'Not for main' && echo committed", "Commits something")
	commit.ok = contains("committed")
	push := bash("git push origin HEAD:main 2>&1; echo exit code $?", "Tries to push to main")
	if reply, done := play(r, []step{commit, push}); !done {
		return reply
	}
	return Reply{Text: "Git said:\n\n" + result(r, push)}
}

// eatMemory makes the agent's server the first that the kernel ends.
func eatMemory(r Request) Reply {
	eat := bash("for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' <$p/cmdline)\" in *devaipod-pod*) ;; *opencode*) echo 1000 >$p/oom_score_adj;; esac; done; tail /dev/zero; echo survived", "Eats memory")
	eat.ok = contains("survived")
	if reply, done := play(r, []step{eat}); !done {
		return reply
	}
	return Reply{Text: "I survived: " + result(r, eat)}
}

func lookAround(r Request) Reply {
	look := bash("env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'; ls -laR /run/secrets /run/devaipod; cat /proc/net/dev", "Looks around")
	if reply, done := play(r, []step{look}); !done {
		return reply
	}
	return Reply{Text: "I looked around:\n\n" + result(r, look)}
}
