package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/acp"
	"codeberg.org/devaipod/devaipod/podapi/command"
	"codeberg.org/devaipod/devaipod/podapi/opencode"
	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/gate"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/relay"
	"codeberg.org/devaipod/devaipod/pods/usage"
	"codeberg.org/devaipod/devaipod/pods/witness"
)

// paths of the control container; flags move them for tests.
type paths struct{ service, agent, workspace, usage, repo string }

// runControl serves the pod's gate and its pod-api until ctx ends.
func runControl(ctx context.Context, args []string, stderr io.Writer, log *slog.Logger) error {
	var p paths
	f := flags("control", stderr)
	f.StringVar(&p.service, "service", podfile.ServiceDir, "directory with the podfile, the service's socket and ours")
	f.StringVar(&p.agent, "agent", podfile.AgentSocketDir, "directory of the agent's sockets")
	f.StringVar(&p.workspace, "workspace", podfile.WorkspaceSocketDir, "directory of the workspace's sockets")
	f.StringVar(&p.usage, "usage", podfile.UsageDir, "directory with the account of what the model costs, and what the agent did")
	f.StringVar(&p.repo, "repo", podfile.RepoDir, "directory of the agent's clone, as the agent sees it")
	if err := f.Parse(args); err != nil {
		return err
	}
	file, err := podfile.Read(p.service)
	if err != nil {
		return fmt.Errorf("reading the podfile: %w", err)
	}
	dirs := []string{p.agent, p.workspace}
	if file.Agent == "" {
		dirs = dirs[1:]
	}
	// The other end of these is another user. Sticky: what is ours there it can't
	// replace.
	for _, dir := range dirs {
		if err := os.Chmod(dir, 0o777|fs.ModeSticky); err != nil {
			return fmt.Errorf("opening the socket directory: %w", err)
		}
	}
	if file.Agent == "" {
		return controlWorkspace(ctx, p, file, log)
	}
	account, err := usage.Open(p.usage)
	if err != nil {
		log.Error("no request goes to the model", "err", err) // a person has to see it: the rest of the pod goes on
		account = usage.Broken(err)
	}
	ca, err := authority(p.service, p.agent, log)
	if err != nil {
		return err
	}
	policy, service := podfile.NewPolicyReader(p.service).Policy, relay.Unix(filepath.Join(p.service, podfile.ServiceSocket))
	seen := witness.Open(p.usage, file.Task.Key, log)
	defer seen.Close()
	g, err := gate.New(gate.Config{File: file, CA: ca, Policy: policy, Usage: account, Witness: seen, Service: service, Log: log})
	if err != nil {
		return err
	}
	journal := podapi.OpenJournal(p.usage, log)
	debug.FreeOSMemory() // a long journal was read
	known, cpu, err := newWatched(p, file, g, journal, log)
	if err != nil {
		return err
	}
	known.account, known.policy = account, policy
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { g.Watch(ctx, func(hosts []string) { known.allowed(ctx, log, hosts) }) })
	watching.Go(func() { known.clone.watch(ctx) })
	watching.Go(func() { cpu.watch(ctx) })
	return serveControl(ctx, log, known, []door{
		{filepath.Join(p.agent, podfile.GateSocket), 0o666, g.Handler(gate.Agent)},
		{filepath.Join(p.workspace, podfile.GateSocket), 0o666, g.Handler(gate.Workspace)},
		{filepath.Join(p.service, podfile.ControlSocket), 0o600, podapi.NewServer(known, journal, log)},
	})
}

// newWatched is the agent's driver with what control knows beside it, and the meter
// that it goes by; both want to be watched.
func newWatched(p paths, file *podfile.File, g *gate.Gate, journal *podapi.Journal, log *slog.Logger) (watched, *meter, error) {
	service := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return relay.Unix(filepath.Join(p.service, podfile.ServiceSocket))(ctx)
	}}}
	cpu := &meter{every: meterEvery(file.Task.Stall), ask: func(ctx context.Context, path string) ([]byte, error) { return askService(ctx, service, path) }}
	driver, err := newDriver(p, file, g, cpu.computes.Load, journal, log)
	if err != nil {
		return watched{}, nil, err
	}
	cpu.state = func() podapi.State { return driver.Summary().State }
	known := watched{Driver: driver, gate: g, service: service, clone: &clone{driver: driver, log: log}}
	known.clone.status = known
	return known, cpu, nil
}

// newDriver is the one that the agent is spoken to with.
func newDriver(p paths, file *podfile.File, g *gate.Gate, computes func() int64, journal *podapi.Journal, log *slog.Logger) (podapi.Driver, error) {
	socket, task := filepath.Join(p.agent, podfile.AgentSocket), file.Task
	traffic := func() podapi.Traffic { return podapi.Traffic(g.Traffic().Seen) }
	book := func() *podapi.Book {
		return podapi.OpenBook(filepath.Join(p.service, podfile.BookName), podfile.Replace, task.Key, task.Prompt, log)
	}
	switch file.Driver {
	case "", podfile.DriverOpencode:
		return opencode.New(opencode.Config{
			Socket: socket, Dir: p.repo, Key: task.Key, Prompt: task.Prompt, Stall: task.Stall, Setup: task.Setup,
			Answers: filepath.Join(p.service, podfile.AnswersName), Replace: podfile.Replace, Traffic: traffic, Computes: computes, Journal: journal, Log: log,
		}), nil
	case podfile.DriverACP:
		return acp.New(acp.Config{Socket: socket, Dir: p.repo, Book: book(), Ask: file.Ask, Stall: task.Stall, Setup: task.Setup, Traffic: traffic, Computes: computes, Journal: journal, Log: log}), nil
	case podfile.DriverCommand:
		return command.New(command.Config{Socket: socket, Book: book(), Stall: task.Stall, Setup: task.Setup, Traffic: traffic, Computes: computes, Journal: journal, Log: log}), nil
	}
	return nil, fmt.Errorf("the podfile wants the driver %q, which this version does not have", file.Driver)
}

// controlWorkspace serves a pod without an agent.
func controlWorkspace(ctx context.Context, p paths, file *podfile.File, log *slog.Logger) error {
	g, err := gate.New(gate.Config{
		File: file, Policy: podfile.NewPolicyReader(p.service).Policy, Usage: usage.Broken(errNoAgent), Service: relay.Unix(filepath.Join(p.service, podfile.ServiceSocket)), Log: log,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { g.Watch(ctx, nil) })
	return serveControl(ctx, log, nobody{}, []door{
		{filepath.Join(p.workspace, podfile.GateSocket), 0o666, g.Handler(gate.Workspace)},
		{filepath.Join(p.service, podfile.ControlSocket), 0o600, podapi.NewServer(nobody{}, &podapi.Journal{}, log)},
	})
}

// errNoAgent is what a pod answers that is a person's own.
var errNoAgent = errors.New("there is no agent in this pod")

// nobody drives no agent.
type nobody struct{}

func (nobody) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}
func (nobody) Summary() podapi.Summary            { return podapi.Summary{} }
func (nobody) Send(context.Context, string) error { return errNoAgent }
func (nobody) Stop(context.Context) error         { return errNoAgent }

// watched is the agent's driver, which knows what the gate refused.
type watched struct {
	podapi.Driver
	gate    *gate.Gate
	service *http.Client
	account *usage.Journal
	policy  func() (podfile.Policy, error)
	clone   *clone
}

// used tells what of the account is used.
func (w watched) used() *podapi.Used {
	amount := func(t usage.Totals) *podapi.Used {
		return &podapi.Used{Requests: t.Requests, Tokens: t.Tokens.Sum(), Cost: t.Cost.String(), Seconds: t.Time.Seconds()}
	}
	sum, _ := w.account.Totals()
	out := amount(sum)
	if policy, err := w.policy(); err == nil { // without one nothing is used
		b := policy.Budget
		out.Budget = &podapi.Used{Tokens: b.Tokens, Seconds: b.Time.Seconds()}
		if b.Money > 0 {
			out.Budget.Cost = b.Money.String()
		}
	}
	return out
}

// Probes implements [podapi.Probed].
func (w watched) Probes(ctx context.Context) []podapi.Probe {
	clone := podapi.Probe{Name: "clone"}
	// The shim clones, and then tells of its setup and starts the agent.
	if _, told := w.gate.Setups()[gate.Agent]; !told && w.Driver.Summary().State == podapi.Starting {
		clone.Err = errors.New("not there yet, as far as the agent's container tells")
	}
	return []podapi.Probe{clone, {Name: "model", Err: w.gate.Reach(ctx)}}
}

// GitStatus implements [podapi.Cloned]: the service has what is saved.
func (w watched) GitStatus(ctx context.Context) (json.RawMessage, error) {
	text, err := askService(ctx, w.service, podfile.GitStatusPath)
	if err == nil && text == nil {
		err = podapi.ErrNothingSaved
	}
	return text, err
}

// askService asks the service; nil is what it does not know.
func askService(ctx context.Context, service *http.Client, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://service"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := service.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the service: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	switch {
	case err != nil:
		return nil, fmt.Errorf("asking the service: %w", err)
	case resp.StatusCode == http.StatusNotFound:
		return nil, nil
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the service answered %s: %s", resp.Status, podapi.Line(string(text), 300))
	}
	return text, nil
}

// Pages implements [podapi.Paged], for an agent that has pages.
func (w watched) Pages() http.RoundTripper {
	if p, ok := w.Driver.(podapi.Paged); ok {
		return p.Pages()
	}
	return noPages{}
}

// noPages answers for an agent that has none.
type noPages struct{}

// RoundTrip implements [http.RoundTripper].
func (noPages) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("it has no pages of its own")
}

// Summary tells of both.
func (w watched) Summary() podapi.Summary {
	sum := w.Driver.Summary()
	sum.State, sum.Used = w.clone.told(sum.State), w.used()
	for _, b := range w.gate.Blocked() {
		sum.Blocked = append(sum.Blocked, podapi.Block{Host: b.Host, Port: b.Port, Why: b.Why, Allow: b.Allow, Count: b.Count, Last: b.Last})
	}
	said := w.gate.Setups()
	for _, role := range []gate.Role{gate.Agent, gate.Workspace} {
		if st, ok := said[role]; ok && (st.Error != "" || !st.Ended) {
			setup := podapi.Setup{Container: string(role), Stage: podapi.Clip(st.Stage, 100), Error: podapi.Clip(st.Error, 1000)}
			sum.Setups = append(sum.Setups, setup)
			if role == gate.Agent && sum.State == podapi.Starting && st.Error == "" {
				sum.Activity = "setup: " + setup.Stage
			}
		}
	}
	return sum
}

// allowed lets the agent know that hosts are let through which it was refused.
func (w watched) allowed(ctx context.Context, log *slog.Logger, hosts []string) {
	text := "The gate lets these through now, which it refused before: " + strings.Join(hosts, ", ") + ". If you still need them, try again."
	tell := w.Send
	if d, ok := w.Driver.(podapi.Noted); ok { // it is no answer to what the agent asks
		tell = d.Note
	}
	if err := tell(ctx, text); err != nil {
		log.Warn("the agent was not told of hosts that it may reach now", "hosts", hosts, "err", err)
		return
	}
	log.Info("told the agent of hosts that it may reach now", "hosts", hosts)
}

// authority is the gate's own certificate authority, made once for the pod's life:
// its key lies where control alone can read it, its certificate where the shim
// takes it from.
func authority(private, public string, log *slog.Logger) (*egress.CA, error) {
	file := filepath.Join(private, "gate-ca.pem")
	both, err := os.ReadFile(file)
	var ca *egress.CA
	if err == nil {
		ca, err = egress.LoadCA(both, both)
	}
	if err != nil { // none, or one whose time is over
		if ca, err = egress.NewCA(); err != nil {
			return nil, fmt.Errorf("making the gate's certificate authority: %w", err)
		}
	}
	cert, key, err := ca.PEM()
	if err == nil {
		err = podfile.Replace(file, append(append([]byte(nil), cert...), key...))
	}
	if err != nil {
		return nil, fmt.Errorf("keeping the gate's certificate authority: %w", err)
	}
	// The directory is shared with the agent: what lies there is replaced, not
	// written. Who keeps us from that hurts itself alone.
	shown := filepath.Join(public, podfile.CACert)
	err = errors.Join(os.RemoveAll(shown), podfile.Replace(shown, cert))
	if err == nil {
		err = os.Chmod(shown, 0o644)
	}
	if err != nil {
		log.Warn("the agent does not see the gate's certificate: its requests that secrets are put into fail", "err", err)
	}
	return ca, nil
}

// A door is a socket and who answers there.
type door struct {
	path    string
	mode    fs.FileMode
	handler http.Handler
}

// serveControl serves all doors and runs the driver until ctx ends or one of
// them breaks.
func serveControl(ctx context.Context, log *slog.Logger, driver podapi.Driver, doors []door) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, d := range doors {
		l, err := listenSocket(d.path, d.mode)
		if err != nil {
			return err
		}
		srv := egress.Server(d.handler, log)
		defer srv.Close() //nolint:errcheck // the process ends
		go func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				cancel(fmt.Errorf("serving %s: %w", d.path, err))
			}
		}()
	}
	log.Info("gate and pod-api are up")
	if err := driver.Run(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// listenSocket listens in place of what a killed process left. The directory
// may be shared with a hostile container: nothing that lies there is followed.
func listenSocket(path string, mode fs.FileMode) (net.Listener, error) {
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
