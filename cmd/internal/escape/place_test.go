package main_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	main "codeberg.org/devaipod/devaipod/cmd/internal/escape"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

const image = "localhost/escape:latest"

// A place is all that the probes try to get out of, and to reach.
type place struct {
	dir     string // on this machine, with the programs
	base    string // in which the world is
	host    string // a directory with what is the host's
	lab     *lab.Lab
	world   *testkit.World
	client  *podman.Client
	manager *pods.Manager
	runs    *podman.Pods
	tools   string
	key     pods.Key // of the pod
	config  main.Config
	canary  []string
	inject  []podfile.Injection // into the pod's requests
}

func newPlace(t *testing.T) *place {
	t.Helper()
	ctx := t.Context()
	p := &place{dir: os.Getenv(placeEnv), base: os.Getenv(placeEnv), key: pods.Key{Owner: "ann", Repo: "hello", Issue: 3}}
	var err error
	p.lab, err = lab.New(ctx)
	must(t, err)
	t.Cleanup(func() { must(t, p.lab.Close()) })
	p.resolver(t)
	p.trust(t)
	// In memory: it is gone with the namespaces.
	must(t, os.MkdirAll(p.path("w"), 0o755))
	must(t, unix.Mount("tmpfs", p.path("w"), "tmpfs", 0, "mode=755"))
	p.podman(t)
	p.host = p.path("w/host")
	must(t, os.MkdirAll(p.host, 0o755))
	key := "sk+" + rand.Text() + "/="
	p.canary = []string{key}
	p.config = main.Config{
		Nonce: p.lab.Nonce, Run: strings.ToLower(rand.Text()[:8]), Proxy: podfile.GateAddr,
		Abstract: "@escape-" + rand.Text()[:8], Victim: "victim-" + rand.Text()[:8], Key: "escape:" + rand.Text()[:8],
		Marker: filepath.Join(p.host, "marker-"+rand.Text()[:8]), Lacks: lacks(t),
	}
	must(t, os.WriteFile(p.config.Marker, nil, 0o644))
	p.hostServices(t)
	p.victims(t)
	return p
}

// resolver makes the lab's name server the machine's.
func (p *place) resolver(t *testing.T) {
	t.Helper()
	conf := filepath.Join(p.dir, "resolv.conf")
	must(t, os.WriteFile(conf, []byte("nameserver "+lab.ResolverAddr+"\noptions timeout:1 attempts:1\n"), 0o644))
	must(t, unix.Mount(conf, "/etc/resolv.conf", "", unix.MS_BIND, ""))
}

// trust makes the lab's authority one of those of this machine, which gates trust.
func (p *place) trust(t *testing.T) {
	t.Helper()
	const bundle = "/etc/ssl/certs/ca-certificates.crt"
	all, err := os.ReadFile(bundle)
	must(t, err)
	file := filepath.Join(p.dir, "authorities.pem")
	must(t, os.WriteFile(file, append(all, p.lab.CA()...), 0o644))
	must(t, unix.Mount(file, bundle, "", unix.MS_BIND, ""))
}

// path is one below the directory that the world is in.
func (p *place) path(name string) string { return filepath.Join(p.base, name) }

// podman makes a world, and what the product has of podman.
func (p *place) podman(t *testing.T) {
	t.Helper()
	ctx, dir := t.Context(), p.path("w")
	var err error
	p.world, err = testkit.NewWorld(dir)
	must(t, err)
	for _, kv := range p.world.Env() {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	socket := filepath.Join(dir, "podman.sock")
	uri, err := podman.Find(ctx, podman.FindConfig{URI: "unix://" + socket, Start: true, SocketPath: socket, Log: log})
	must(t, err)
	p.client, err = podman.Connect(ctx, uri)
	must(t, err)
	program, err := os.ReadFile(filepath.Join(p.dir, "bin/escape"))
	must(t, err)
	archive, err := rootFS(program)
	must(t, err)
	must(t, p.client.ImageImport(ctx, image, bytes.NewReader(archive), nil))
	state := filepath.Join(dir, "s")
	must(t, os.MkdirAll(state, 0o700))
	p.runs = podman.NewPods(p.client, "escape", log)
	p.manager, err = pods.New(pods.Config{Instance: "escape", StateDir: state, Backend: p.runs, Images: p.client, Policy: p.policy, Log: log,
		Nested: func(k pods.Key) bool { return k == nestedKey }})
	must(t, err)
	p.tools, err = p.manager.EnsureTools(ctx, filepath.Join(p.dir, "bin/devaipod-pod"))
	must(t, err)
}

// policy is a pod's: the model's key, and a network of one host, and of names that
// lead elsewhere later. The lab's addresses are not public, so they are named.
func (p *place) policy(pods.Key) (podfile.Policy, error) {
	n := podfile.Network{
		Allow:   []string{lab.AllowedName, "*.tls.test", main.RebindMetadata, lab.MetadataName, fmt.Sprintf("%s:%d", main.RebindHost, p.config.HostPort)},
		Private: []string{"198.51.100.0/24", "2001:db8::/32"},
	}
	for _, name := range []string{main.RebindForge, main.RebindLoopback} { // the forge's is the same port
		n.Allow = append(n.Allow, fmt.Sprintf("%s:%d", name, p.config.LoopPort))
	}
	return podfile.Policy{Key: p.canary[0], Network: n, Inject: p.inject}, nil
}

// rootFS is an agent's image with nothing in it but the program.
func rootFS(program []byte) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, mode := range map[string]int64{"bin": 0o755, "etc": 0o755, "tmp": 0o1777, "home": 0o755, "home/agent": 0o700, "workspace": 0o755, "run": 0o755, "run/devaipod": 0o755, ".devaipod": 0o755, "saver": 0o755} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}
		if name == "home/agent" || name == "workspace" {
			h.Uid, h.Gid = 1000, 1000
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	for name, mode := range map[string]int64{"bin/escape": 0o755, strings.TrimPrefix(main.SetuidPath, "/"): 0o4755} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(program))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(program); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"bin/opencode", "bin/git"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "escape"}); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

// hostServices are what a host has that pods must not reach.
func (p *place) hostServices(t *testing.T) {
	t.Helper()
	var err error
	p.config.HostPort, err = p.lab.Host("0.0.0.0", "host")
	must(t, err)
	p.config.LoopPort, err = p.lab.Host("127.0.0.1", "loopback")
	must(t, err)
	sock := filepath.Join(p.host, "host.sock")
	for _, path := range []string{sock, p.config.Abstract} {
		l, err := net.Listen("unix", path)
		must(t, err)
		p.lab.Serve(l, "socket")
	}
	must(t, os.Chmod(sock, 0o666))
	p.config.Sockets = []string{"/host/host.sock", sock, p.path("w/podman.sock"), "/run/podman/podman.sock", "/var/run/docker.sock"}
	segment, err := rand.Int(rand.Reader, big.NewInt(1<<30))
	must(t, err)
	p.config.Segment = int(segment.Int64()) + 1
	_, err = unix.SysvShmGet(p.config.Segment, 4096, unix.IPC_CREAT|0o666)
	must(t, err)
	for name, addr := range map[string]string{main.RebindMetadata: lab.MetadataAddr, main.RebindLoopback: "127.0.0.1"} {
		p.lab.Rebind(name, netip.MustParseAddr(lab.AllowedAddr), netip.MustParseAddr(addr))
	}
}

// victims are processes of the host, of both users that probes may be.
func (p *place) victims(t *testing.T) {
	t.Helper()
	for _, uid := range []uint32{1000, 0} {
		cmd := exec.Command(filepath.Join(p.dir, "bin/escape"), "victim", p.config.Victim, p.config.Key)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}} // the namespaces end it, if we don't
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		t.Cleanup(func() {
			must(t, cmd.Process.Kill())
			_ = cmd.Wait() // killed
		})
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatalf("a process of the host: %v", err)
		}
		p.config.VictimPID = cmd.Process.Pid
	}
}

func (p *place) spec(k pods.Key) pods.Spec {
	return pods.Spec{
		Key: k, Branch: "agent/3-x", Base: "main", AgentImage: image, ToolsImage: p.tools, MemoryBytes: 512 << 20,
		Task:  podfile.Task{Key: "task", Prompt: "get out"},
		Model: podfile.Model{API: podfile.APIOpenAI, Name: "m", BaseURL: fmt.Sprintf("http://%s:%d/v1", lab.ModelName, lab.ModelPort)},
		Pin:   pods.Pin{EventID: 7, Labeler: "ann", At: time.Unix(1700000000, 0).UTC(), TextHash: "h"}, GitName: "bot", GitEmail: "bot@example.org",
	}
}

func (p *place) container(k pods.Key, role string) string { return p.manager.Name(k) + "-" + role }

func (p *place) agent() string { return p.container(p.key, pods.RoleAgent) }

func (p *place) neighbour() pods.Key { return pods.Key{Owner: "bob", Repo: "other", Issue: 4} }

// twoPods makes the pod and its neighbour, as the product makes them.
func (p *place) twoPods(t *testing.T) {
	t.Helper()
	p.config.Neighbour = p.makePod(t, p.neighbour(), "neighbour")
	p.config.Control = p.makePod(t, p.key, "control")
}

// nestedKey is the pod's in which containers may be made.
var nestedKey = pods.Key{Owner: "ann", Repo: "nested", Issue: 5}

// makePod makes a pod, and returns where its control container serves the site.
func (p *place) makePod(t *testing.T, k pods.Key, site string) (addr string) {
	t.Helper()
	run := p.manager.RunDir(k)
	must(t, os.MkdirAll(run, 0o700))
	// The service has nothing for it.
	l, err := net.Listen("unix", filepath.Join(run, podfile.ServiceSocket))
	must(t, err)
	service := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = service.Serve(l) }() // until Close
	t.Cleanup(func() { must(t, service.Close()) })
	_, err = p.manager.Ensure(t.Context(), p.spec(k))
	must(t, err)
	var tokens struct{ Agent, Workspace string }
	text, err := os.ReadFile(filepath.Join(run, "tokens.json"))
	must(t, err)
	must(t, json.Unmarshal(text, &tokens))
	if p.canary = append(p.canary, tokens.Workspace); site == "neighbour" {
		p.canary = append(p.canary, tokens.Agent)
	}
	return p.serveIn(t, p.container(k, pods.RoleControl), site)
}

// forge is a container on podman's default network, as the forge's is.
func (p *place) forge(t *testing.T) {
	t.Helper()
	_, err := p.world.Podman(t.Context(), "run", "--detach", "--name", "forge", image, "/bin/escape", "serve", "127.0.0.1:1", "")
	must(t, err)
	p.config.Forge = p.serveIn(t, "forge", "forge")
	addr, _, err := net.SplitHostPort(p.config.Forge)
	must(t, err)
	p.lab.Rebind(main.RebindForge, netip.MustParseAddr(lab.AllowedAddr), netip.MustParseAddr(addr))
}

// namespace is a container's network.
func (p *place) namespace(t *testing.T, container string) string {
	t.Helper()
	pid, err := p.world.Podman(t.Context(), "inspect", "--format", "{{.State.Pid}}", container)
	must(t, err)
	return "/proc/" + strings.TrimSpace(pid) + "/ns/net"
}

// address is a container's, with the port of the host's loopback.
func (p *place) address(t *testing.T, container string) string {
	t.Helper()
	addr, err := p.world.Podman(t.Context(), "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container)
	must(t, err)
	return net.JoinHostPort(strings.TrimSpace(addr), strconv.Itoa(p.config.LoopPort))
}

// serveIn has a web server in a container's network, at its address and at the same
// port of its loopback as the host's, and returns where. Without root there is none.
func (p *place) serveIn(t *testing.T, container, site string) string {
	t.Helper()
	if os.Getuid() == 0 {
		must(t, lab.Within(p.namespace(t, container), func() error {
			l, err := net.Listen("tcp4", net.JoinHostPort("0.0.0.0", strconv.Itoa(p.config.LoopPort)))
			if err == nil {
				p.lab.Serve(l, site)
			}
			return err
		}))
	}
	return p.address(t, container)
}

// openContainer is a container that shuts nothing out. It has canaries in every
// form and place.
func (p *place) openContainer(t *testing.T) string {
	t.Helper()
	must(t, p.lab.Proxy(podfile.GateAddr, p.canary[0]))
	key := p.canary[0]
	for file, text := range map[string]string{
		"files/a": "x" + base64.StdEncoding.EncodeToString([]byte("user:"+key+"\n")), "files/b": url.QueryEscape(key), "volume/c": "{" + hex.EncodeToString([]byte(key)) + "}", "sock/gate.sock": "",
	} {
		path := p.path("w/open/" + file)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
	volume := func(from, to string) string { return "--volume=" + p.path("w/"+from) + ":" + to }
	_, err := p.world.Podman(t.Context(), "run", "--detach", "--name", "open", "--privileged", "--user", "0", "--network", "host", "--pid", "host", "--ipc", "host", "--uts", "host",
		"--env", podfile.EnvToken+"=any", "--env", "KEY="+key,
		volume("open/files", "/files"), volume("open/volume", podfile.WorkspaceDir), volume("open/sock", podfile.SocketDir), volume("host", "/host"),
		image, "/bin/opencode")
	must(t, err)
	return "open"
}

// openConfig is for the host's own network, which the open container has.
func (p *place) openConfig(t *testing.T) main.Config {
	t.Helper()
	c := p.config
	c.Host, c.Run = lab.HostAddr, p.config.Run+"o"
	p.lab.Rebind(main.RebindHost, netip.MustParseAddr(lab.AllowedAddr), netip.MustParseAddr(c.Host))
	return c
}

// sealedConfig is for a pod: its host is at the other end of control's network.
func (p *place) sealedConfig(t *testing.T, k pods.Key, run string) main.Config {
	t.Helper()
	c := p.config
	c.Host, c.Run = p.gateway(t, k), p.config.Run+run
	p.lab.Rebind(main.RebindHost, netip.MustParseAddr(lab.AllowedAddr), netip.MustParseAddr(c.Host))
	return c
}

// gateway is the host's address on a pod's network.
func (p *place) gateway(t *testing.T, k pods.Key) string {
	t.Helper()
	out, err := p.world.Podman(t.Context(), "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", p.container(k, pods.RoleControl))
	must(t, err)
	return strings.TrimSpace(out)
}

// tryIn tells the program in a container to go on, and waits for its results.
func (p *place) tryIn(t *testing.T, what, container string, c main.Config) map[string]main.Result {
	t.Helper()
	for _, s := range p.canary {
		c.Canaries = append(c.Canaries, main.Backwards(s))
	}
	text, err := json.Marshal(c)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var said bytes.Buffer
	if code, err := p.client.Exec(ctx, container, "", []string{"/bin/escape", "configure"}, bytes.NewReader(text), &said, &said); err != nil || code != 0 {
		t.Fatalf("configuring %s: code %d, %v: %s", what, code, err, said.String())
	}
	var log bytes.Buffer
	for !strings.Contains(log.String(), main.Done) {
		log.Reset()
		must(t, p.client.Logs(ctx, container, false, 0, &log))
		if ctx.Err() != nil {
			t.Fatalf("the probes in %s do not end:\n%s", what, log.String())
		}
		time.Sleep(100 * time.Millisecond)
	}
	return results(t, log.String())
}

// seen adds to results what the lab knows of them.
func (p *place) seen(all map[string]main.Result) map[string]main.Result {
	for name, r := range all {
		if r.Token != "" && !r.Reached && p.lab.Saw(r.Token) {
			r.Reached, r.Detail = true, "the lab saw it"
			all[name] = r
		}
	}
	return all
}

// end removes the pods as the product does, and all else.
func (p *place) end(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	must(t, p.manager.RemoveAll(ctx))
	tables, err := exec.CommandContext(ctx, "nft", "list", "tables").Output()
	must(t, err)
	if strings.Contains(string(tables), "devaipod") {
		t.Errorf("after the last pod: %s", tables)
	}
	must(t, p.world.Remove(ctx))
}
