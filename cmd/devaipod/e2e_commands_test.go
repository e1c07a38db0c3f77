package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// The words of the scripts beyond testscript's own. What one prints, `stdout`
// matches in the next line; with ! before it, it must fail.
func commands() map[string]func(*call) error {
	return map[string]func(*call) error{
		"repo":       (*call).repo,       // repo: makes $REPO on the forge, with an AGENTS.md
		"issue":      (*call).issue,      // issue SCENARIO TITLE…: opens an issue; sets $ISSUE, $KEY (owner/name#3), $SUM
		"label":      (*call).label,      // label [-as WHO] [AGENT]: puts the label on the issue, or that of an agent
		"unlabel":    (*call).unlabel,    // unlabel: takes it off
		"api":        (*call).rest,       // api [-as WHO] [-q JQ] METHOD PATH [JSON]
		"issuestate": (*call).issueState, // issuestate: state and labels of the issue
		"comments":   (*call).comments,   // comments: what was said on the issue, and by whom
		"pull":       (*call).pull,       // pull: the facts of the issue's pull requests
		"diff":       (*call).diff,       // diff: of the newest one, as the forge has it
		"proof":      (*call).proof,      // proof: the branch adds the nonce's sha256; prints git's diff
		"refs":       (*call).refs,       // refs: all refs of $REPO, by git
		"saved":      (*call).saved,      // saved THING: git show refs/saved/$ISSUE/THING of the work store
		"podman":     (*call).podman,     // podman ARG…
		"pods":       (*call).pods,       // pods: what podman has of the issue, a line each
		"service":    (*call).service,    // service pid | kill | start
		"survive":    (*call).survive,    // survive steps | others | random | end: kill the service again and again
		"hostile":    (*call).hostile,    // hostile: an issue whose title and body are full of tricks, 1 MB long
		"lock":       (*call).lock,       // lock: locks the conversation of the issue, in the browser
		"hook":       (*call).hook,       // hook [-secret S]: the webhook of the label once more, as the forge would send it
		"flap":       (*call).flap,       // flap DURATION: puts the label on and off ten times a second, on at last
		"full":       (*call).full,       // full DIR | -off DIR: a disk that is full
		"grow":       (*call).grow,       // grow: makes $REPO TEST_BIG_MB large (64)
		"rundir":     (*call).rundir,     // rundir: the pod's directory
		"policy":     (*call).policy,     // policy: what the pod may do, without keys
		"reboot":     (*call).reboot,     // reboot: what a machine without power does
		"noleak":     (*call).noleak,     // noleak FILE…: none of our secrets in them
		"processes":  (*call).processes,  // processes: pids of the world's processes
		"terminal":   (*call).terminal,   // terminal FILE COMMAND ARG…: in a terminal, with a script of keys
		"browse":     (*call).browse,     // browse FILE: in a real browser, with a script of clicks
		"task":       (*call).task,       // task SCENARIO TITLE FILE: what `run` is given; sets $SUM
		"release":    (*call).release,    // release: the model goes on in the scenario slow
		"letgo":      (*call).letgo,      // letgo: the same, until the agent has tried to push
		"freeaddr":   (*call).freeAddr,   // freeaddr: a loopback address and port that nobody listens on
		"capture":    (*call).capture,    // capture NAME: the last stdout as a variable
		"gitconfig":  (*call).gitconfig,  // gitconfig FILE: one whose credential helper is the person's
		"front":      (*call).front,      // front [seen]: a TLS proxy before the forge; sets $FRONT, $CA
		"second":     (*call).second,     // second [WEBHOOK]: another devaipod, which joins the forge at $FRONT
		"hookrelay":  (*call).hookRelay,  // hookrelay PORT: the forge's way to its webhook
		"account":    (*call).account,    // account NAME [admin]: makes one on the forge
		"kit":        (*call).kit,        // kit [away]: serves actions by git; sets $KIT (its host), $KIT_COMMIT
		"dispatch":   (*call).dispatch,   // dispatch WORKFLOW NAME=VALUE…: runs one, in the browser
		"mint":       (*call).mint,       // mint NAME FILE SCOPE…: a token of an account
		"waitfor":    (*call).waitfor,    // waitfor PATTERN COMMAND ARG…: until it prints that
		"always":     (*call).always,     // always DURATION PATTERN COMMAND ARG…: that, all the time
	}
}

// saved shows a part of what was saved of the issue's agent: work:PATH, say.
func (c *call) saved() error {
	if len(c.args) != 1 {
		return errors.New("usage: saved THING")
	}
	var repo struct {
		ID int64 `json:"id"`
	}
	if err := c.api(person).Get(c.ctx, "/repos/"+c.env("REPO"), &repo); err != nil {
		return err
	}
	cmd := exec.CommandContext(c.ctx, "git", "--git-dir", filepath.Join(c.StateDir, "work", fmt.Sprintf("%d.git", repo.ID)), "show", "refs/saved/"+c.env("ISSUE")+"/"+c.args[0])
	out, err := cmd.CombinedOutput()
	c.out.Write(out)
	return err
}

// A call is one use of a command in a script.
type call struct {
	*suite
	ts   *testscript.TestScript
	args []string
	out  bytes.Buffer
}

func (s *suite) command(name string, f func(*call) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		c := &call{suite: s, ts: ts, args: args}
		err := f(c)
		if _, e := ts.Stdout().Write(c.out.Bytes()); e != nil {
			ts.Fatalf("%v", e)
		}
		switch {
		case err != nil && neg:
			ts.Logf("[as wanted] %v", err)
		case err != nil:
			ts.Fatalf("%s: %v\n%s", name, err, c.out.String())
		case neg:
			ts.Fatalf("%s worked, and should have been refused\n%s", name, c.out.String())
		}
	}
}

func (c *call) printf(format string, a ...any) { fmt.Fprintf(&c.out, format, a...) }

func (c *call) env(name string) string { return c.ts.Getenv(name) }

// as takes -as WHO off the arguments.
func (c *call) as() *testkit.API {
	who := person
	if len(c.args) > 1 && c.args[0] == "-as" {
		who, c.args = c.args[1], c.args[2:]
	}
	return c.api(who)
}

func (c *call) issueNumber() (int64, error) {
	n, err := strconv.ParseInt(c.env("ISSUE"), 10, 64)
	if err != nil {
		return 0, errors.New("no $ISSUE yet")
	}
	return n, nil
}

// repo makes the repository and waits until the service has seen it, by the
// webhook or by itself, and given it the labels.
func (c *call) repo() error {
	api, repo := c.api(person), c.env("REPO")
	create := map[string]any{"name": c.env("NAME"), "auto_init": true, "default_branch": "main"}
	path := "/user/repos"
	if owner := c.env("OWNER"); owner != person {
		path = "/orgs/" + owner + "/repos"
	}
	if err := api.Post(c.ctx, path, create, nil); err != nil {
		return err
	}
	agents := map[string]string{"content": "IyBGb3IgYWdlbnRzCgpLZWVwIGl0IHNob3J0Lgo=", "message": "Tell agents how", "branch": "main"}
	if err := api.Post(c.ctx, "/repos/"+repo+"/contents/AGENTS.md", agents, nil); err != nil {
		return err
	}
	return c.until("the labels of "+repo, func() (bool, error) {
		var labels []testkit.Label
		err := api.Get(c.ctx, "/repos/"+repo+"/labels", &labels)
		// The six states, and those that start: opencode, or one of the others.
		has := func(name string) bool { return slices.Contains(labels, testkit.Label{Name: name}) }
		return has("devaipod") && has("devaipod:plain") && has("devaipod:sleepy") && len(labels) >= 9, err
	})
}

func (c *call) issue() error {
	if len(c.args) < 2 {
		return errors.New("usage: issue SCENARIO TITLE…")
	}
	p := testkit.NewProof()
	i, err := c.api(person).CreateIssue(c.ctx, c.env("REPO"), strings.Join(c.args[1:], " "), p.Task(c.args[0]))
	if err == nil {
		c.about(p, i)
	}
	return err
}

// about makes an issue the one that the script is about.
func (c *call) about(p testkit.Proof, i testkit.Issue) {
	c.ts.Setenv("ISSUE", strconv.FormatInt(i.Number, 10))
	c.ts.Setenv("KEY", fmt.Sprintf("%s#%d", c.env("REPO"), i.Number))
	c.ts.Setenv("NONCE", p.Nonce)
	c.ts.Setenv("SUM", p.Sum)
	c.printf("%s\n", i.URL)
}

func (c *call) label() error {
	api := c.as()
	n, err := c.issueNumber()
	if err != nil {
		return err
	}
	name := "devaipod"
	if len(c.args) > 0 {
		name += ":" + c.args[0]
	}
	return api.Label(c.ctx, c.env("REPO"), n, name)
}

func (c *call) unlabel() error {
	api, path := c.api(person), fmt.Sprintf("/repos/%s/issues/%s/labels", c.env("REPO"), c.env("ISSUE"))
	var labels []struct {
		ID   int64  `json:"id"`
		Name string `json:"name"`
	}
	if err := api.Get(c.ctx, path, &labels); err != nil {
		return err
	}
	for _, l := range labels {
		if l.Name == "devaipod" || strings.HasPrefix(l.Name, "devaipod:") {
			_, err := api.Do(c.ctx, "DELETE", fmt.Sprintf("%s/%d", path, l.ID), nil)
			return err
		}
	}
	return fmt.Errorf("%s has no label devaipod", c.env("KEY"))
}

func (c *call) rest() error {
	api, filter := c.as(), ""
	if len(c.args) > 1 && c.args[0] == "-q" {
		filter, c.args = c.args[1], c.args[2:]
	}
	if len(c.args) < 2 {
		return errors.New("usage: api [-as WHO] [-q JQ] METHOD PATH [JSON]")
	}
	var body any
	if len(c.args) > 2 {
		body = []byte(c.args[2])
	}
	answer, err := api.Do(c.ctx, c.args[0], c.args[1], body)
	if err != nil || filter == "" {
		c.out.Write(answer)
		return err
	}
	jq := exec.CommandContext(c.ctx, "jq", "-r", filter)
	var stderr bytes.Buffer
	jq.Stdin, jq.Stdout, jq.Stderr = bytes.NewReader(answer), &c.out, &stderr
	if err := jq.Run(); err != nil {
		return fmt.Errorf("jq %s: %w: %s", filter, err, stderr.String())
	}
	return nil
}

func (c *call) issueState() error {
	var i testkit.Issue
	if err := c.api(person).Get(c.ctx, "/repos/"+c.env("REPO")+"/issues/"+c.env("ISSUE"), &i); err != nil {
		return err
	}
	c.printf("state=%s labels=", i.State)
	for _, l := range i.Labels {
		c.printf("[%s]", l.Name)
	}
	c.printf("\n")
	return nil
}

func (c *call) comments() error {
	n, err := c.issueNumber()
	if err != nil {
		return err
	}
	all, err := c.api(person).Comments(c.ctx, c.env("REPO"), n)
	if err != nil {
		return err
	}
	c.printf("comments=%d\n", len(all))
	for _, m := range all {
		c.printf("[by %s] %s\n", m.User.Login, m.Body)
	}
	return nil
}

func (c *call) pulls() ([]testkit.Pull, error) {
	n, err := c.issueNumber()
	if err != nil {
		return nil, err
	}
	return c.api(person).Pulls(c.ctx, c.env("REPO"), n)
}

func (c *call) pull() error {
	pulls, err := c.pulls()
	if err != nil {
		return err
	}
	c.printf("pulls=%d\n", len(pulls))
	for _, p := range pulls {
		var reviewers []string
		for _, r := range p.Reviewers {
			reviewers = append(reviewers, r.Login)
		}
		c.printf("number=%d state=%s draft=%t merged=%t by=%s from=%s to=%s reviewers=%s title=%s\n%s\n",
			p.Number, p.State, p.Draft, p.Merged, p.User.Login, p.Head.Ref, p.Base.Ref, strings.Join(reviewers, ","), p.Title, p.Body)
	}
	if len(pulls) > 0 {
		c.ts.Setenv("PULL", strconv.FormatInt(pulls[0].Number, 10))
		c.ts.Setenv("BRANCH", pulls[0].Head.Ref)
	}
	return nil
}

func (c *call) diff() error {
	pulls, err := c.pulls()
	if err != nil {
		return err
	}
	if len(pulls) == 0 {
		return errors.New("no pull request")
	}
	diff, err := c.api(person).Diff(c.ctx, c.env("REPO"), pulls[0].Number)
	c.printf("%s", diff)
	return err
}

func (c *call) proof() error {
	pulls, err := c.pulls()
	if err != nil {
		return err
	}
	if len(pulls) != 1 {
		return fmt.Errorf("%d pull requests, want one", len(pulls))
	}
	diff, err := testkit.ProofOf(c.env("NONCE")).Verify(c.ctx, c.Stack, c.api(person), c.env("REPO"), pulls[0].Base.Ref, pulls[0].Head.Ref)
	c.printf("%s", diff)
	return err
}

func (c *call) refs() error {
	api := c.api(person)
	return c.Git(c.ctx, testkit.Call{Args: []string{"ls-remote", api.URL + "/" + c.env("REPO") + ".git"}, Env: api.GitEnv(), Stdout: &c.out})
}

func (c *call) podman() error {
	out, err := c.World.Podman(c.ctx, c.args...)
	c.printf("%s", out)
	return err
}

func (c *call) service() error {
	if len(c.args) != 1 {
		return errors.New("usage: service pid|kill|stop|start")
	}
	if c.args[0] == "start" {
		env := []string{"DEVAIPOD_AGENT_REST=" + c.env("DEVAIPOD_AGENT_REST")} // "" is unset
		return c.Run(c.ctx, testkit.Call{Args: []string{"forge", "up", "-d"}, Env: env, Stdout: &c.out, Stderr: &c.out})
	}
	text, err := os.ReadFile(filepath.Join(c.StateDir, "service.pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	c.printf("%d\n", pid)
	if c.args[0] == "pid" {
		return nil
	}
	signal := syscall.SIGKILL
	if c.args[0] == "stop" {
		signal = syscall.SIGTERM
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return err
	}
	return c.until("its end", func() (bool, error) { return syscall.Kill(pid, 0) != nil, nil })
}

// secrets are what must not be found where an agent or a stranger could look.
func (c *call) secrets() (map[string]string, error) {
	cred, err := c.Credentials()
	return map[string]string{
		"the service's token": cred.ServiceToken, "the bot's token": cred.BotToken, "the person's token": cred.PersonToken,
		"the webhook's secret": cred.WebhookSecret, "the person's password": c.password, "the model's key": modelKey, "the panel's secret": cred.PanelSecret,
	}, err
}

func (c *call) noleak() error {
	secrets, err := c.secrets()
	if err != nil {
		return err
	}
	for what, secret := range secrets {
		if len(secret) < 8 {
			return fmt.Errorf("%s is %q: nothing that could be looked for", what, secret)
		}
		for _, file := range c.args {
			text, err := os.ReadFile(c.ts.MkAbs(file))
			if file == "stdout" || file == "stderr" {
				text, err = []byte(c.ts.ReadFile(file)), nil
			}
			if err != nil {
				return err
			}
			if len(text) == 0 {
				return fmt.Errorf("%s is empty: it proves nothing", file)
			}
			if bytes.Contains(text, []byte(secret)) {
				return fmt.Errorf("%s holds %s", file, what)
			}
		}
	}
	return nil
}

func (c *call) processes() error {
	pids, err := c.World.Processes()
	for _, pid := range pids {
		// It may be gone by now; then its name is not needed.
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		cmdline := string(bytes.ReplaceAll(text, []byte{0}, []byte{' '}))
		if !podmansOwn.MatchString(cmdline) {
			c.printf("%d %s\n", pid, cmdline)
		}
	}
	return err
}

func (c *call) task() error {
	if len(c.args) != 3 {
		return errors.New("usage: task SCENARIO TITLE FILE")
	}
	p := testkit.NewProof()
	c.ts.Setenv("NONCE", p.Nonce)
	c.ts.Setenv("SUM", p.Sum)
	return os.WriteFile(c.ts.MkAbs(c.args[2]), []byte(c.args[1]+"\n\n"+p.Task(c.args[0])), 0o600)
}

func (c *call) freeAddr() error {
	addr, err := testkit.FreeAddr("")
	c.printf("%s\n", addr)
	return err
}

func (c *call) capture() error {
	if len(c.args) != 1 {
		return errors.New("usage: capture NAME")
	}
	c.ts.Setenv(c.args[0], strings.TrimSpace(c.ts.ReadFile("stdout")))
	return nil
}

func (c *call) gitconfig() error {
	if len(c.args) != 1 {
		return errors.New("usage: gitconfig FILE")
	}
	helper := fmt.Sprintf("[credential]\n\thelper = \"!f() { test \\\"$1\\\" = get && printf 'username=%%s\\\\npassword=%%s\\\\n' %s %s; }; f\"\n", person, c.password)
	return os.WriteFile(c.ts.MkAbs(c.args[0]), []byte(helper), 0o600)
}
