package main_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
	"codeberg.org/devaipod/devaipod/cmd/internal/scriptedmodel"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// The suite: the real program on a real forge, real podman and real opencode,
// in a world of its own (package testkit); only the model is a script. Each
// script in testdata/script tells one promise. What happened is read from
// podman, the forge and git.

const (
	// patience is how long the whole suite may take before it ends itself, tidily.
	patience = 80 * time.Minute
	// scriptLimit is how long a script may take: the slowest needs 3 min on two cores, and
	// more than 7 beside other packages.
	scriptLimit = 12 * time.Minute
)

const (
	person   = "ada" // made by forge up; site admin
	stranger = "eve" // may label issues where a script lets her, never push
	modelKey = "sk-e2e-3f1f1c0a9d7e4b52"
)

// otherAgents are spoken to by other drivers than opencode's. The plain one thinks
// nothing: it does the scripted model's default task by itself, at a hundredth of what
// opencode costs, which is for scripts in which it does not matter who works. The sleepy one
// is at work until it is stopped.
const otherAgents = `[agents.protocol]
driver = "acp"
command = ["opencode", "acp"]

[agents.careful]
command = ["sh", "-c", """OPENCODE_CONFIG_CONTENT=$(printf %s "$OPENCODE_CONFIG_CONTENT" | sed 's/"\\*":"allow"/&,"edit":"ask"/') exec opencode "$@" """, "careful"]

[agents.carefulprotocol]
driver = "acp"
ask = true
command = ["sh", "-c", """OPENCODE_CONFIG_CONTENT=$(printf %s "$OPENCODE_CONFIG_CONTENT" | sed 's/"\\*":"allow"/&,"edit":"ask"/') exec opencode acp"""]

[agents.plain]
driver = "command"
command = ["bash", "-ec", """
exec 3<>/dev/tcp/127.0.0.1/8099 # its model is where its variables say
printf 'GET %s/models HTTP/1.1\\r\\nHost: gate\\r\\nAuthorization: Bearer %s\\r\\nConnection: close\\r\\n\\r\\n' "${OPENAI_BASE_URL#http://127.0.0.1:8099}" "$OPENAI_API_KEY" >&3
read -r answer <&3
[[ $answer == *' 200 '* ]]
printf %s "$(sed -n 's/^nonce: //p' "$1" | tr -cd A-Za-z0-9)" | sha256sum | cut -d' ' -f1 >NONCE.sha256
git add -A
git diff --cached --quiet || git commit -qm 'Write down the proof' # it may be asked again
git push -q origin "HEAD:$DEVAIPOD_BRANCH"
echo pushed by a program
""", "plain", "{prompt_file}"]

[agents.sleepy]
driver = "command"
command = ["sh", "-c", "exec sleep 3600", "sleepy", "{prompt_file}"]

`

// suite is what the scripts share.
type suite struct {
	*testkit.Stack
	ctx      context.Context
	password string
	model    *http.Server
	script   *scriptedmodel.Server
	keeper   *keeper // while a script survives
	killedAt []byte  // what the service was killed at, of all scripts
	fronted  *front  // of the script that joins
	tokens   tokens
	// kitServer is the one of the script that has a kit.
	kitServer *http.Server
}

// running is the suite once a test needed it.
var running struct {
	once sync.Once
	s    *suite
	err  error
}

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "mirror" { // git runs it as a credential helper
		if main.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr) != nil {
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	interrupted = ctx
	ctx, cancel := context.WithTimeout(ctx, patience)
	suiteContext = ctx
	code := m.Run()
	cancel()
	stop()
	if running.s != nil {
		if err := running.s.close(); err != nil {
			fmt.Fprintln(os.Stderr, "cleaning up after the suite:", err)
			code = 1
		}
	}
	if err := os.RemoveAll(programsDir); err != nil {
		fmt.Fprintln(os.Stderr, "removing what was compiled:", err)
		code = 1
	}
	os.Exit(code)
}

var (
	suiteContext context.Context
	interrupted  context.Context // without patience
)

// Scripts that are not for everybody's company: alone they run one at a time, before
// the others, whose pods a service that is started again would look at each time;
// last are those that leave something damaged (a specification, which holds what pods
// were lent; podman's pods, which take no further container), and the end of the stack.
var (
	first = []string{"forge-up"}
	alone = []string{"killed-between-steps", "killed-at-random", "restart-service", "while-down", "saved", "restore", "follow-upstream", "forge-up-repairs", "edited-after-label", "webhooks", "forge-away", "ci", "ci-more", "ci-external", "ci-local", "ci-back", "review", "land-faults", "panel", "disk-full"}
	last  = []string{"podman-back", "reboot", "purge"}
)

// soaked are scripts that run when they are named, and in `make soak`: they take a quarter of
// the suite's time, and what they promise has closer tests of its package as well, which always
// run. docs/architecture.md says which those are.
var soaked = []string{"killed-at-random", "forge-away", "ci-more", "ci-external", "big-repository", "flapping-label", "recover", "repo-archived", "repo-renamed", "podman-back"}

// runs tells whether a script runs: in make soak all do.
func runs(name string) bool {
	return !slices.Contains(soaked, name) || os.Getenv("TEST_SOAK") != "" || strings.Contains(flag.Lookup("test.run").Value.String(), name)
}

func TestEndToEnd(t *testing.T) {
	t.Parallel() // beside TestRootless
	running.once.Do(func() { running.s, running.err = start(suiteContext) })
	if running.err != nil {
		t.Fatal(running.err)
	}
	all, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var together []string
	for _, file := range all {
		if name := scriptName(file); runs(name) && !slices.Contains(slices.Concat(first, alone, last), name) {
			together = append(together, scriptName(file))
		}
	}
	// Each group in a test of its own: the next starts when all of it is done.
	for _, name := range first {
		t.Run("first", func(t *testing.T) { running.s.scripts(t, name) })
	}
	for _, name := range alone {
		running.s.alone(t, name)
	}
	if err := running.s.up(); err != nil {
		t.Fatal(err)
	}
	t.Run("together", func(t *testing.T) { running.s.scripts(t, together...) })
	for _, name := range last {
		running.s.alone(t, name)
	}
}

func (s *suite) alone(t *testing.T, name string) {
	if !runs(name) {
		return
	}
	t.Run("alone", func(t *testing.T) {
		s.scriptsAfter(t, s.up, name)
	})
}

// up has the service run as the suite configures it: a script may have failed with it down, or
// have left it configured in its own way.
func (s *suite) up() error {
	return s.Run(suiteContext, testkit.Call{Args: []string{"forge", "up", "-d"}})
}

func scriptName(file string) string { return strings.TrimSuffix(filepath.Base(file), ".txtar") }

// scripts runs some of the scripts, two at a time.
func (s *suite) scripts(t *testing.T, names ...string) {
	s.scriptsAfter(t, func() error { return nil }, names...)
}

// scriptsAfter does something before each of the scripts that are to run.
func (s *suite) scriptsAfter(t *testing.T, before func() error, names ...string) {
	setup := func(env *testscript.Env) error {
		if err := before(); err != nil {
			return err
		}
		return s.setup(env)
	}
	p := testscript.Params{Setup: setup, Cmds: map[string]func(*testscript.TestScript, bool, []string){}, RequireUniqueNames: true}
	for name, f := range commands() {
		p.Cmds[name] = s.command(name, f)
	}
	for _, n := range names {
		p.Files = append(p.Files, "testdata/script/"+n+".txtar")
	}
	testscript.Run(t, p)
}

// setup gives a script its variables; $REPO is a name that only it uses.
func (s *suite) setup(env *testscript.Env) error {
	if err := s.ctx.Err(); err != nil {
		return fmt.Errorf("the suite took longer than %s or was interrupted: %w", patience, err)
	}
	name := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")
	home := filepath.Join(env.WorkDir, ".home")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	for _, kv := range s.Env() {
		k, v, _ := strings.Cut(kv, "=")
		env.Setenv(k, v)
	}
	env.Setenv("HOME", home)
	images := os.Getenv("DEVAIPOD_CACHE")
	if images == "" { // the machine's, not one in that home
		cache, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		images = filepath.Join(cache, "devaipod")
	}
	env.Setenv("DEVAIPOD_CACHE", images)
	env.Setenv("PATH", s.Bin+":"+os.Getenv("PATH"))
	for k, v := range map[string]string{
		"FORGE": s.ForgeURL(), "SERVICE": s.ServiceURL(), "SERVICE_ADDR": s.ServiceListen, "INSTANCE": s.Instance, "STATE": s.StateDir, "UPSTREAMS": s.Upstreams(), "BIN": s.Bin,
		"PERSON": person, "STRANGER": stranger, "BOT": s.Instance + "-bot",
		"OWNER": person, "NAME": name, "REPO": person + "/" + name,
	} {
		env.Setenv(k, v)
	}
	stop := s.limit(env)
	env.Defer(func() {
		stop()
		s.endKeeper()
		tb, ok := env.T().(testing.TB)
		failed := ok && tb.Failed()
		if failed {
			env.T().Log(s.dump(env.Getenv("REPO")))
		}
		err := s.rest(env.Getenv("REPO"))
		if !failed {
			err = errors.Join(err, s.removePods(env.Getenv("REPO")))
		}
		if err != nil {
			env.T().Log("ending what the script began:", err)
		}
	})
	return nil
}

// rest closes a script's issues, so that their agents stop: some thirty that wait
// for a review would be more than a small machine has memory for.
func (s *suite) rest(repo string) error {
	var open []testkit.Issue
	err := s.api(person).Get(s.ctx, "/repos/"+repo+"/issues?state=open&type=issues&limit=50", &open)
	var said *testkit.StatusError
	if errors.As(err, &said) && said.Code == http.StatusNotFound {
		return nil // it made none, or took it away
	}
	for _, i := range open {
		_, e := s.api(person).Do(s.ctx, http.MethodPatch, fmt.Sprintf("/repos/%s/issues/%d", repo, i.Number), map[string]string{"state": "closed"})
		err = errors.Join(err, e)
	}
	return err
}

// removePods removes a repository's pods: podman takes the longer to tell what there is the more
// there is, and some three hundred containers would be there in the end.
func (s *suite) removePods(repo string) error {
	out, err := s.World.Podman(s.ctx, "ps", "--all", "--filter", "label=devaipod.repo="+repo, "--filter", "label=devaipod.role=agent", "--format", `{{index .Labels "devaipod.issue"}}`)
	for _, issue := range strings.Fields(out) {
		var said bytes.Buffer
		if e := s.Run(s.ctx, testkit.Call{Args: []string{"rm", "--force", repo + "#" + issue}, Stdout: &said, Stderr: &said}); e != nil {
			err = errors.Join(err, e, errors.New(said.String()))
		}
	}
	return err
}

// start builds the program and brings up what the scripts share.
func start(ctx context.Context) (*suite, error) {
	sweep(ctx)
	dir, err := os.MkdirTemp("", "dvt-*")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "pid"), fmt.Append(nil, os.Getpid()), 0o600); err != nil {
		return nil, err
	}
	world, err := testkit.NewWorld(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := &suite{Stack: &testkit.Stack{World: world}, ctx: ctx, password: rand.Text()}
	return s, s.prepare(ctx)
}

func (s *suite) prepare(ctx context.Context) error {
	root, err := testkit.Root()
	if err != nil {
		return err
	}
	c := testkit.StackConfig{
		Instance: "t" + strings.ToLower(rand.Text()[:6]), Root: root, Bin: filepath.Join(s.World.Dir, "bin"),
		Resync: "10s", Memory: "1500MiB", Person: person, Nested: person + "/image", ModelAPI: "openai", ModelName: modelName, ModelKey: "model", Agents: otherAgents,
	}
	if c.ForgeListen, err = testkit.FreeAddr(""); err != nil {
		return err
	}
	if c.ServiceListen, err = testkit.FreeAddr(""); err != nil {
		return err
	}
	if c.ModelURL, err = s.serveModel(); err != nil {
		return err
	}
	if s.Stack, err = testkit.NewStack(s.World, c); err != nil {
		return err
	}
	bin, err := programs()
	if err != nil {
		return err
	}
	if err := os.CopyFS(s.Bin, os.DirFS(bin)); err != nil {
		return err
	}
	if err := s.LoadImages(ctx, os.Stderr); err != nil {
		return err
	}
	var said bytes.Buffer
	for _, call := range []testkit.Call{
		{Args: []string{"forge", "up", "-d", "--admin", person, "--password-stdin"}, Stdin: s.password},
		{Args: []string{"secret", "set", "model"}, Stdin: modelKey},
	} {
		call.Stdout, call.Stderr = &said, &said
		if err := s.Run(ctx, call); err != nil {
			return fmt.Errorf("%w\n%s\n%s", err, said.String(), s.dump(""))
		}
	}
	return s.api(person).Post(ctx, "/admin/users", map[string]any{
		"username": stranger, "email": stranger + "@example.org", "password": s.password, "must_change_password": false,
	}, nil)
}

// programs is the directory with what is tested, which is compiled once, with fault
// points; TEST_BIN names one where that is done.
var programs = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("TEST_BIN"); dir != "" {
		return dir, nil
	}
	root, err := testkit.Root()
	if err != nil {
		return "", err
	}
	if programsDir, err = os.MkdirTemp("", "dvt-bin-*"); err != nil {
		return "", err
	}
	return programsDir, compile(suiteContext, root, programsDir, tags+" faults", "./cmd/devaipod", "./cmd/devaipod-box", "./cmd/devaipod-pod", "./cmd/internal/standin")
})

var programsDir string // what TestMain removes

// compile does as the Makefile does, which has no fault points.
func compile(ctx context.Context, root, to, tags string, packages ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-tags", tags, "-o", to + "/"}, packages...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building devaipod: %w\n%s", err, out)
	}
	return nil
}

const tags = "remote containers_image_openpgp exclude_graphdriver_btrfs btrfs_noversion nomsgpack"

// close removes all that the suite made, and is an error if something is left.
func (s *suite) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var err error
	if s.model != nil {
		err = s.model.Close()
	}
	return errors.Join(err, s.World.Remove(ctx))
}

// sweep removes the worlds of suites that were killed.
func sweep(ctx context.Context) {
	files, err := filepath.Glob(filepath.Join(os.TempDir(), "dvt-*", "pid"))
	if err != nil {
		return
	}
	for _, file := range files {
		pid, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if _, err := os.Stat("/proc/" + string(pid)); err == nil || len(pid) == 0 {
			continue
		}
		w, err := testkit.OpenWorld(filepath.Dir(file))
		if err == nil {
			err = w.Remove(ctx)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "removing what a killed suite left:", err)
		}
	}
}

// api is the forge as one of the accounts sees it.
func (s *suite) api(who string) *testkit.API {
	a := &testkit.API{URL: s.ForgeURL(), User: who, Password: s.password}
	if who == s.Instance+"-bot" {
		// Without its token it can't be asked as, and the forge says so.
		c, _ := s.Credentials()
		a.Token = c.BotToken
		return a
	}
	a.Token = s.tokens.of(s.ctx, a)
	return a
}

// tokens are those of the people who ask the forge: a password costs it some 30 ms of processor
// with each question, a token a tenth of that.
type tokens struct {
	mu    sync.Mutex
	known map[string]string // by name
}

// of is the token of the account of a, who has a password; "" if the forge gives none.
func (t *tokens) of(ctx context.Context, a *testkit.API) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if known, ok := t.known[a.User]; ok {
		return known
	}
	var made struct {
		SHA1 string `json:"sha1"`
	}
	in := map[string]any{"name": "e2e", "scopes": []string{"all"}}
	if err := a.Post(ctx, "/users/"+a.User+"/tokens", in, &made); err != nil {
		return "" // there is no such account yet, or the forge is down: the question itself will say so
	}
	if t.known == nil {
		t.known = map[string]string{}
	}
	t.known[a.User] = made.SHA1
	return made.SHA1
}

// dump tells what the service and a repository's containers said last.
func (s *suite) dump(repo string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var b strings.Builder
	fmt.Fprintf(&b, "--- service.log\n%s", lastLines(filepath.Join(s.StateDir, "service.log"), 40))
	args := []string{"ps", "--all", "--format", "{{.Names}} {{.Status}}"}
	if repo != "" {
		args = append(args, "--filter", "label=devaipod.repo="+repo)
	}
	out, err := s.World.Podman(ctx, args...)
	if err != nil {
		return b.String() + err.Error()
	}
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(line, " ")
		fmt.Fprintf(&b, "--- %s", line)
		cmd := exec.CommandContext(ctx, "podman", "logs", "--tail", "25", name)
		cmd.Env = s.World.Environ()
		logs, err := cmd.CombinedOutput()
		fmt.Fprintf(&b, "%s", logs)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	return b.String()
}

// lastLines are the last n lines of a file, or why there are none.
func lastLines(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error() + "\n"
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error() + "\n"
	}
	lines := slices.Collect(strings.Lines(string(b)))
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
