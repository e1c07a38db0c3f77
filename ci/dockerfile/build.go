// Package dockerfile runs the instructions of a Dockerfile, for actions that are made of
// one. It builds no image by itself: an [Engine] makes the containers that they run in,
// and keeps what they leave.
//
// [Build] reads the Dockerfile out of the build's [Files], which are a tar of which
// nothing is unpacked here, and goes through its stages. Each RUN is a container of its
// own, which is committed before the next; what is copied goes into the container that
// is there, or into that of the next RUN.
//
// The Dockerfile and the files are hostile. They are bounded here; what a container may,
// and which images it may be made of, is the engine's to say. What can't be had, or
// would mean something that it does not mean here, is refused by name.
package dockerfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Bounds of a Dockerfile.
const (
	maxText   = 64 << 10 // bytes of it
	maxSteps  = 200
	maxStages = 16
)

// A Config is what a container of an image is, unless it is asked for something else.
type Config struct {
	Env             []string // NAME=VALUE
	Entrypoint, Cmd []string
	User, Dir       string
}

// An Image is one of the engine's.
type Image struct {
	ID string
	Config
}

// A Process is the one that a container is made for.
type Process struct {
	Argv, Env []string // Env: all that it has
	User, Dir string
}

// An Engine makes containers and images. A container and an image are named by IDs of
// its own. Its methods are called one at a time.
type Engine interface {
	// Base is the image that FROM names; "scratch" is one without files.
	Base(ctx context.Context, name string) (Image, error)
	// Create makes a container, which is not started.
	Create(ctx context.Context, image string, p Process) (container string, err error)
	// Run starts a container, waits for its end, and writes what it prints to out.
	Run(ctx context.Context, container string, out io.Writer) (exit int, err error)
	// IsDir tells whether a path in a container is a directory, or leads to one.
	IsDir(ctx context.Context, container, path string) (bool, error)
	// Read is a tar of what a path in a container is, by the path's last element.
	Read(ctx context.Context, container, path string) (io.ReadCloser, error)
	// Write unpacks a tar at the root of a container, with the owners that it names.
	Write(ctx context.Context, container string, files io.Reader) error
	// Commit makes an image of a container that does not run.
	Commit(ctx context.Context, container string) (image string, err error)
	// Remove ends a container and removes it, also after ctx has ended.
	Remove(ctx context.Context, container string) error
}

// Options of a build.
type Options struct {
	File string // name of the Dockerfile among the files
	Dir  string // directory for what is held between two containers
	Max  int64  // bytes of that
	// Say is told of each step, and what it prints, by lines.
	Say func(line string)
}

// Build runs a Dockerfile and returns what its last stage made. It closes no files.
func Build(ctx context.Context, e Engine, files *Files, o Options) (_ *Image, err error) {
	defer func() {
		if p := recover(); p != nil { // of what reads it
			err = fmt.Errorf("%s can't be read: %v", o.File, p)
		}
	}()
	text, err := files.text(o.File, maxText)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(text) || bytes.ContainsRune(text, 0) {
		return nil, fmt.Errorf("%s is no text", o.File)
	}
	read, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.File, err)
	}
	stages, global, err := instructions.Parse(read.AST, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.File, err)
	}
	b := &builder{Engine: e, Options: o, files: files, escape: read.EscapeToken, made: map[string]*Image{}, args: platform()}
	for _, s := range stages {
		b.steps += 1 + len(s.Commands)
	}
	if len(stages) > maxStages || b.steps > maxSteps {
		return nil, fmt.Errorf("%s has %d stages with %d steps; at most %d with %d are run", o.File, len(stages), b.steps, maxStages, maxSteps)
	}
	if err := files.ignore(ctx); err != nil {
		return nil, err
	}
	for _, a := range global {
		if err := b.global(a); err != nil {
			return nil, err
		}
	}
	var last *Image
	for i, s := range stages {
		if last, err = b.stage(ctx, s); err != nil {
			return nil, err
		}
		for _, name := range []string{strconv.Itoa(i), strings.ToLower(s.Name)} {
			b.made[name] = last
		}
	}
	return last, nil
}

// platform are the variables that builds have without being given any.
func platform() map[string]string {
	args := map[string]string{}
	for _, p := range []string{"TARGET", "BUILD"} {
		args[p+"OS"], args[p+"ARCH"], args[p+"PLATFORM"] = "linux", runtime.GOARCH, "linux/"+runtime.GOARCH
	}
	return args
}

type builder struct {
	Engine
	Options
	files     *Files
	escape    rune
	made      map[string]*Image // by name and number of the stage
	args      map[string]string // before the first FROM
	at, steps int
	words     int // bytes of those whose variables were replaced
}

func (b *builder) global(a instructions.ArgCommand) error {
	if err := a.Expand(b.expander(nil, b.args)); err != nil {
		return fmt.Errorf("ARG: %w", err)
	}
	for _, arg := range a.Args {
		if arg.Value != nil {
			b.args[arg.Key] = *arg.Value
		}
	}
	return nil
}

// A stage is one that is under way.
type stage struct {
	*builder
	Config
	image   string
	box     string // container that is written to, "" for none
	pending []func(ctx context.Context, container string) error
	args    map[string]string
	shell   []string
	cmdSet  bool
}

func (b *builder) stage(ctx context.Context, from instructions.Stage) (_ *Image, err error) {
	base, err := b.base(ctx, from)
	if err != nil {
		return nil, err
	}
	s := &stage{builder: b, Config: base.Config, image: base.ID, args: map[string]string{}, shell: []string{"/bin/sh", "-c"}}
	s.Env = slices.Clone(s.Env)
	if value, _ := lookup(s.Env, "PATH"); value == "" {
		s.setEnv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	defer func() { err = errors.Join(err, s.drop(ctx)) }()
	for _, c := range from.Commands {
		text := fmt.Sprint(c)
		b.step(text)
		if err := s.do(ctx, c); err != nil {
			return nil, fmt.Errorf("%s: %w", short(text), err)
		}
	}
	if s.box == "" && len(s.pending) > 0 {
		if err := s.open(ctx, []string{"/bin/sh"}); err != nil {
			return nil, err
		}
	}
	if err := s.commit(ctx); err != nil {
		return nil, err
	}
	return &Image{s.image, s.Config}, nil
}

func (b *builder) step(text string) {
	b.at++
	b.Say(fmt.Sprintf("Step %d/%d: %s", b.at, b.steps, short(text)))
}

// short is the beginning of an instruction.
func short(text string) string {
	line, _, more := strings.Cut(text, "\n")
	if len(line) > 200 || more {
		line = strings.ToValidUTF8(line[:min(len(line), 200)], "") + " …"
	}
	return line
}

func (b *builder) base(ctx context.Context, from instructions.Stage) (*Image, error) {
	b.step(from.SourceCode)
	expand := b.expander(nil, b.args)
	name, err := expand(from.BaseName)
	if err != nil {
		return nil, fmt.Errorf("FROM %s: %w", short(from.BaseName), err)
	}
	if p, err := expand(from.Platform); err != nil || p != "" && p != "linux/"+runtime.GOARCH && p != "linux" {
		return nil, errors.Join(fmt.Errorf("FROM --platform=%s: there is only linux/%s", short(p), runtime.GOARCH), err)
	}
	if made := b.made[strings.ToLower(name)]; made != nil {
		return made, nil
	}
	i, err := b.Base(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("FROM %s: %w", short(name), err)
	}
	return &i, nil
}

// do runs one instruction.
func (s *stage) do(ctx context.Context, c instructions.Command) error {
	if e, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		if err := e.Expand(s.expander(s.Env, s.args)); err != nil {
			return err
		}
	}
	switch c := c.(type) {
	case *instructions.RunCommand:
		return s.run(ctx, c)
	case *instructions.CopyCommand:
		if c.Parents || len(c.ExcludePatterns) > 0 {
			return errors.New("--parents and --exclude are not possible here")
		}
		return s.copy(ctx, copying{from: c.From, chown: c.Chown, chmod: c.Chmod, SourcesAndDest: c.SourcesAndDest})
	case *instructions.AddCommand:
		if err := plain(c); err != nil {
			return err
		}
		return s.copy(ctx, copying{chown: c.Chown, chmod: c.Chmod, SourcesAndDest: c.SourcesAndDest})
	case *instructions.ArgCommand:
		s.takeArgs(c)
	case *instructions.EnvCommand:
		for _, kv := range c.Env {
			s.setEnv(kv.Key, kv.Value)
		}
	default:
		return s.configure(c)
	}
	return nil
}

// configure runs an instruction that says what a container of the image is.
func (s *stage) configure(c instructions.Command) error {
	switch c := c.(type) {
	case *instructions.WorkdirCommand:
		s.Dir = s.within(c.Path)
	case *instructions.UserCommand:
		s.User = c.User
	case *instructions.ShellCommand:
		s.shell = c.Shell
	case *instructions.EntrypointCommand:
		s.Entrypoint = s.command(c.ShellDependantCmdLine)
		if !s.cmdSet {
			s.Cmd = nil
		}
	case *instructions.CmdCommand:
		s.Cmd, s.cmdSet = s.command(c.ShellDependantCmdLine), true
	case *instructions.LabelCommand, *instructions.MaintainerCommand, *instructions.ExposeCommand, *instructions.VolumeCommand,
		*instructions.HealthCheckCommand, *instructions.StopSignalCommand, *instructions.OnbuildCommand:
		// They have no meaning for the container of an action.
	default:
		return errors.New("this instruction is not known here")
	}
	return nil
}

func (s *stage) takeArgs(c *instructions.ArgCommand) {
	for _, a := range c.Args {
		if a.Value != nil {
			s.args[a.Key] = *a.Value
		} else if v, ok := s.builder.args[a.Key]; ok {
			s.args[a.Key] = v
		}
	}
}

func (s *stage) command(c instructions.ShellDependantCmdLine) []string {
	if c.PrependShell {
		return slices.Concat(s.shell, c.CmdLine)
	}
	return c.CmdLine
}

func (s *stage) run(ctx context.Context, c *instructions.RunCommand) error {
	for _, flag := range c.FlagsUsed {
		if flag != "network" || instructions.GetNetwork(c) != instructions.NetworkDefault {
			return fmt.Errorf("RUN --%s is not possible in a job", flag)
		}
	}
	argv, err := s.argv(c.ShellDependantCmdLine)
	if err != nil {
		return err
	}
	if err := s.commit(ctx); err != nil {
		return err
	}
	if err := s.open(ctx, argv); err != nil {
		return err
	}
	out := &lines{say: s.Say}
	exit, err := s.Run(ctx, s.box, out)
	out.flush()
	if err == nil && exit != 0 {
		err = fmt.Errorf("the command ended with %d", exit)
	}
	return err
}

// argv is the command of a RUN, with the text that may follow it in place.
func (s *stage) argv(c instructions.ShellDependantCmdLine) ([]string, error) {
	if len(c.Files) == 0 {
		argv := s.command(c)
		if len(argv) == 0 || argv[0] == "" {
			return nil, errors.New("there is no command")
		}
		return argv, nil
	}
	if !c.PrependShell || len(c.CmdLine) != 1 {
		return nil, errors.New("a list can't be followed by a text")
	}
	script := c.CmdLine[0]
	if here, err := parser.ParseHeredoc(script); err == nil && here != nil {
		if script = c.Files[0].Data; strings.HasPrefix(script, "#!") {
			return nil, errors.New("a script that begins with #! is not possible here: COPY it and run it")
		}
		if c.Files[0].Chomp {
			script = parser.ChompHeredocContent(script)
		}
		return slices.Concat(s.shell, []string{script}), nil
	}
	for _, f := range c.Files {
		script += "\n" + f.Data + f.Name
	}
	return slices.Concat(s.shell, []string{script}), nil
}

// open makes the container that is written to, and writes what waits for it.
func (s *stage) open(ctx context.Context, argv []string) (err error) {
	env := slices.Clone(s.Env)
	for _, name := range slices.Sorted(maps.Keys(s.args)) {
		if _, ok := lookup(env, name); !ok {
			env = append(env, name+"="+s.args[name])
		}
	}
	if s.box, err = s.Create(ctx, s.image, Process{Argv: argv, Env: env, User: s.User, Dir: s.Dir}); err != nil {
		return err
	}
	for _, write := range s.pending {
		if err := write(ctx, s.box); err != nil {
			return err
		}
	}
	s.pending = nil
	return nil
}

// commit goes on from what the container holds, if there is one.
func (s *stage) commit(ctx context.Context) (err error) {
	if s.box == "" {
		return nil
	}
	if s.image, err = s.Commit(ctx, s.box); err != nil {
		return err
	}
	return s.drop(ctx)
}

func (s *stage) drop(ctx context.Context) error {
	box := s.box
	if s.box = ""; box == "" {
		return nil
	}
	return s.Remove(ctx, box)
}

// write has something written into the container, or the next one.
func (s *stage) write(ctx context.Context, do func(ctx context.Context, container string) error) error {
	if s.box != "" {
		return do(ctx, s.box)
	}
	s.pending = append(s.pending, do)
	return nil
}
