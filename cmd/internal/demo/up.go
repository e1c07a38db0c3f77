package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

const (
	instance = "demo"
	person   = "demo"
	repo     = person + "/hello"
)

// A demo is one run of the command.
type demo struct {
	root, dir   string
	in          *os.File
	out, errOut io.Writer

	world *testkit.World
	stack *testkit.Stack
	saved saved
	model model
}

// saved is demo.json: what a second run has to know of the first.
type saved struct {
	Forge    string `json:"forge"` // addresses with ports
	Service  string `json:"service"`
	Model    string `json:"model"`
	Password string `json:"password"`
}

// A model is what the agent talks to.
type model struct {
	scripted       bool
	api, url, name string
	key            string
}

func (d *demo) say(format string, a ...any) { fmt.Fprintf(d.out, "==> "+format+"\n", a...) }

// shown writes what programs tell of their progress, set off from our own.
func (d *demo) shown() io.Writer { return &indent{w: d.out, fresh: true} }

func (d *demo) up(ctx context.Context) error {
	if err := d.chooseModel(); err != nil {
		return err
	}
	if err := d.openWorld(); err != nil {
		return err
	}
	before, err := os.ReadFile(filepath.Join(d.dir, "devaipod.toml"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.configure(); err != nil {
		return err
	}
	after, err := os.ReadFile(d.stack.ConfigFile)
	if err != nil {
		return err
	}
	if d.healthy(ctx) {
		d.say("The demo is up already; this run opens another issue in it")
		why := ""
		switch {
		case string(before) != string(after):
			why = "The configuration is another one"
		case d.rebuilt():
			why = "devaipod was built anew"
		}
		if why != "" {
			d.say("%s: restarting", why)
			if err := d.devaipod(ctx, "", "forge", "down"); err != nil {
				return err
			}
		}
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	return d.issue(ctx)
}

// chooseModel reads MODEL_URL, MODEL and the key from the environment and
// standard input; without them the model is our script.
func (d *demo) chooseModel() error {
	d.model = model{scripted: true, api: "openai", name: scriptedName}
	url, name := os.Getenv("MODEL_URL"), os.Getenv("MODEL")
	if url == "" && name == "" {
		return nil
	}
	if url == "" || name == "" {
		return errors.New("a real model needs both: make demo MODEL_URL=https://… MODEL=name < keyfile")
	}
	d.model = model{api: "openai", url: url, name: name}
	if strings.Contains(url, "anthropic") {
		d.model.api = "anthropic"
	}
	if term.IsTerminal(int(d.in.Fd())) {
		return errors.New("give the model's key on standard input, where it is not shown: make demo MODEL_URL=… MODEL=… < keyfile (an empty file if it wants none)")
	}
	key, err := io.ReadAll(io.LimitReader(d.in, 64<<10))
	if err != nil {
		return fmt.Errorf("reading the model's key: %w", err)
	}
	d.model.key = strings.TrimSpace(string(key))
	return nil
}

// openWorld makes the directory, the podman world and the ports, or finds them.
func (d *demo) openWorld() (err error) {
	if d.world, err = testkit.NewWorld(d.dir); err != nil {
		return err
	}
	file := filepath.Join(d.dir, "demo.json")
	b, err := os.ReadFile(file)
	if err == nil {
		return json.Unmarshal(b, &d.saved)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.say("Making a podman of the demo's own in %s (yours is not touched)", d.dir)
	d.saved.Password = strings.ToLower(rand.Text()[:14])
	for _, p := range []struct {
		addr *string
		want string
		what string
	}{{&d.saved.Forge, "127.0.0.1:3000", "forge"}, {&d.saved.Service, "127.0.0.1:8090", "service"}, {&d.saved.Model, "", "model"}} {
		if *p.addr, err = testkit.FreeAddr(p.want); err != nil {
			return err
		}
		if p.want != "" && *p.addr != p.want {
			d.say("%s is taken; the %s gets %s", p.want, p.what, *p.addr)
		}
	}
	if b, err = json.Marshal(d.saved); err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

func (d *demo) configure() (err error) {
	if d.model.scripted {
		d.model.url = "http://" + d.saved.Model + "/v1"
		d.model.key = scriptedKey
	}
	secret := ""
	if d.model.key != "" {
		secret = "model"
	}
	d.stack, err = testkit.NewStack(d.world, testkit.StackConfig{
		Instance: instance, Root: d.root, Bin: filepath.Join(d.root, "bin"), Person: person,
		ForgeListen: d.saved.Forge, ServiceListen: d.saved.Service, Resync: "1m", Memory: "4GiB",
		CI:       "[ci]\nrunner = \"builtin\"\nimages = [\"ubuntu-latest=localhost/devaipod/ci:latest\"]\n\n", // built in the background
		ModelAPI: d.model.api, ModelURL: d.model.url, ModelName: d.model.name, ModelKey: secret,
	})
	return err
}

// healthy tells whether forge and service of an earlier run answer.
func (d *demo) healthy(ctx context.Context) bool {
	if _, err := os.Stat(d.stack.StateDir); err != nil {
		return false
	}
	return d.stack.Run(ctx, testkit.Call{Args: []string{"forge", "status"}}) == nil
}

// rebuilt tells whether the service that runs is of an older build: its file
// was replaced.
func (d *demo) rebuilt() bool {
	pid, err := os.ReadFile(filepath.Join(d.stack.StateDir, "service.pid"))
	if err != nil {
		return false
	}
	exe, err := os.Readlink("/proc/" + strings.TrimSpace(string(pid)) + "/exe")
	return err == nil && strings.HasSuffix(exe, " (deleted)")
}

// start brings up images, model, forge and service, and the sample repository.
func (d *demo) start(ctx context.Context) error {
	d.say("Loading the images of forge and agent (the first time about half a minute)")
	if err := d.stack.LoadImages(ctx, d.shown()); err != nil {
		return err
	}
	if d.model.scripted {
		if err := d.startModel(ctx); err != nil {
			return err
		}
	}
	if d.model.key != "" {
		d.say("devaipod secret set model")
		if err := d.devaipod(ctx, d.model.key, "secret", "set", "model"); err != nil {
			return err
		}
	}
	d.say("devaipod forge up -d --admin %s --password-stdin", person)
	if err := d.devaipod(ctx, d.saved.Password, "forge", "up", "-d", "--admin", person, "--password-stdin"); err != nil {
		return err
	}
	if _, err := d.person().Do(ctx, "GET", "/repos/"+repo, nil); err == nil {
		return nil
	}
	path, err := d.sample(ctx)
	if err != nil {
		return err
	}
	d.say("devaipod forge add %s", path)
	return d.devaipod(ctx, "", "forge", "add", path, "--as", repo)
}

// devaipod runs the product, showing what it says.
func (d *demo) devaipod(ctx context.Context, stdin string, args ...string) error {
	out := d.shown()
	return d.stack.Run(ctx, testkit.Call{Args: args, Stdin: stdin, Stdout: out, Stderr: out})
}

// person is the forge as the person sees it.
func (d *demo) person() *testkit.API {
	return &testkit.API{URL: d.stack.ForgeURL(), User: person, Password: d.saved.Password}
}

// indent sets lines off by four spaces.
type indent struct {
	w     io.Writer
	fresh bool
}

func (i *indent) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		if i.fresh {
			line = "    " + line
		}
		i.fresh = strings.HasSuffix(line, "\n")
		if _, err := io.WriteString(i.w, line); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
