package testkit_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// Images of all kinds, made here of a few files, with the real agent's image beside
// them.

var agentImage = sync.OnceValue(func() error {
	root, err := testkit.Root()
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(root, "compose/images/build"), "load", "agent", testkit.AgentImage)
	cmd.Env = world.Environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
})

// An entry of an image: a file of this machine, text, or a link.
type entry struct{ name, from, text, link string }

// busyboxEntries are a shell and little else, none of it linked with a C library.
func busyboxEntries(t *testing.T) []entry {
	t.Helper()
	program, err := exec.LookPath("busybox")
	must(t, err)
	out := []entry{{name: "bin/busybox", from: program}}
	for _, applet := range []string{"sh", "cat", "ls", "id", "touch", "wget", "mkdir", "stat"} {
		out = append(out, entry{name: "bin/" + applet, link: "busybox"})
	}
	return out
}

// build makes an image of entries and nothing else.
func build(t *testing.T, name string, entries []entry, args ...string) (ref string) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{}
	for _, e := range entries {
		for i, r := range e.name {
			if dir := e.name[:i]; r == '/' && !made[dir] {
				made[dir] = true
				must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}))
			}
		}
		h, data := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o755}, []byte(e.text)
		switch {
		case strings.HasSuffix(e.name, "/"):
			continue
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		case e.from != "":
			var err error
			data, err = os.ReadFile(e.from)
			must(t, err)
		}
		h.Size = int64(len(data))
		must(t, w.WriteHeader(h))
		_, err := w.Write(data)
		must(t, err)
	}
	must(t, w.Close())
	file := filepath.Join(t.TempDir(), "image.tar")
	must(t, os.WriteFile(file, buf.Bytes(), 0o600))
	ref = "localhost/test/" + name + ":1"
	_, err := world.Podman(t.Context(), append(append([]string{"import", "--quiet"}, args...), file, ref)...)
	must(t, err)
	t.Cleanup(func() {
		_, err := world.Podman(context.WithoutCancel(t.Context()), "rmi", "--force", ref)
		must(t, err)
	})
	return ref
}

// glibcEntries are programs of this machine with their libraries.
func glibcEntries(t *testing.T, programs map[string]string) []entry {
	t.Helper()
	var out []entry
	seen := map[string]bool{}
	for name, from := range programs {
		out = append(out, entry{name: name, from: from})
		text, err := exec.Command("ldd", from).Output()
		must(t, err)
		for _, field := range strings.Fields(string(text)) {
			if strings.HasPrefix(field, "/") && !seen[field] {
				seen[field] = true
				out = append(out, entry{name: field[1:], from: field})
			}
		}
	}
	return out
}

// ensure makes a pod, however long its image takes.
func ensure(t *testing.T, m *pods.Manager, s pods.Spec) error {
	t.Helper()
	for {
		if _, err := m.Ensure(t.Context(), s); !errors.Is(err, pods.ErrPreparing) {
			return err
		}
	}
}

func imageSpec(tools, image string, k pods.Key) pods.Spec {
	s := spec(tools, k)
	s.AgentImage, s.Image, s.AgentInImage, s.MemoryBytes = testkit.AgentImage, image, true, 1<<30
	return s
}

func TestAnyImageGetsAWorkingPod(t *testing.T) {
	must(t, agentImage())
	m, tools := podManager(t, "anyimage")
	box := busyboxEntries(t)
	for i, tt := range []struct {
		name    string
		entries []entry
		args    []string
		home    string
		serve   bool
	}{
		{name: "musl", entries: append(slices.Clone(box), entry{name: "lib/ld-musl-x86_64.so.1", from: "/lib/ld-musl-x86_64.so.1"}), home: "/home/agent", serve: true},
		{name: "glibc without git", entries: append(glibcEntries(t, map[string]string{"bin/sh": "/bin/dash", "usr/bin/cat": "/bin/cat"}), box[0],
			entry{name: "bin/id", link: "busybox"}, entry{name: "bin/touch", link: "busybox"}), home: "/home/agent"},
		{name: "another user, volumes and variables", entries: box, home: "/home/agent",
			args: []string{"--change", "USER 1234", "--change", "VOLUME /data", "--change", "ENTRYPOINT [\"/bin/false\"]", "--change", "ENV PATH=/bin", "--change", "ENV LD_LIBRARY_PATH=/nowhere"}},
		{name: "a user of its own with files", home: "/home/vscode", entries: append(slices.Clone(box),
			entry{name: "etc/passwd", text: "root:x:0:0::/root:/bin/sh\nvscode:x:1000:1000::/home/vscode:/bin/sh\n"}, entry{name: "home/vscode/.profile", text: "mine\n"})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			before := names(t)
			k := pods.Key{Owner: "ann", Repo: "any", Issue: int64(i + 1)}
			image := build(t, strings.ReplaceAll(strings.ReplaceAll(tt.name, " ", "-"), ",", ""), tt.entries, tt.args...)
			must(t, ensure(t, m, imageSpec(tools, image, k)))
			t.Cleanup(func() { must(t, m.Remove(context.WithoutCancel(ctx), k)) })
			for _, role := range []string{"agent", "workspace"} {
				// What the model's tool calls and a person do: with the image's own
				// shell, and git from wherever it comes.
				out, err := world.Podman(ctx, "exec", m.Name(k)+"-"+role, "sh", "-ec", `
id; echo "home $HOME"; touch "$HOME/x" /workspace/x /tmp/x /var/tmp/x; ! touch /x 2>/dev/null
git init -q /tmp/a; cd /tmp/a; git commit -q --allow-empty -m m; git clone -q file:///tmp/a /tmp/b; git -C /tmp/b log --oneline; rg --version; echo "libraries $LD_LIBRARY_PATH"`)
				if err != nil || !strings.Contains(out, "uid=1000") || !strings.Contains(out, "home "+tt.home+"\n") || strings.Contains(out, "dvp") {
					t.Errorf("%s: %v\n%s", role, err, out)
				}
			}
			if out, err := world.Podman(ctx, "exec", m.Name(k)+"-agent", "opencode", "--version"); err != nil || !strings.HasPrefix(out, "1.") {
				t.Errorf("the agent: %q, %v", out, err)
			}
			if tt.home == "/home/vscode" {
				if out, err := world.Podman(ctx, "exec", m.Name(k)+"-agent", "cat", "/home/vscode/.profile"); err != nil || out != "mine\n" {
					t.Errorf("the home of the image: %q, %v", out, err)
				}
			}
			if tt.serve {
				serves(t, m.Name(k)+"-agent")
			}
			must(t, m.Remove(ctx, k))
			if after := names(t); after != before {
				t.Errorf("left:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// The workspace runs as the user of the image that devcontainer.json names, whose its
// volumes become; the agent as ever.
func TestTheWorkspacesUser(t *testing.T) {
	must(t, agentImage())
	m, tools := podManager(t, "itsuser")
	ref := build(t, "its-user", append(busyboxEntries(t),
		entry{name: "etc/passwd", text: "root:x:0:0::/root:/bin/sh\ndev:x:1234:1200::/home/dev:/bin/sh\nvscode:x:1000:1000::/home/vscode:/bin/sh\n"},
		entry{name: "home/dev/.profile", text: "mine\n"}))
	k := pods.Key{Owner: "ann", Repo: "any", Issue: 1}
	s := imageSpec(tools, ref, k)
	s.Dev.File = ".devcontainer.json"
	t.Cleanup(func() { must(t, m.Remove(context.WithoutCancel(t.Context()), k)) })
	as := func(role, uid, home string) {
		t.Helper()
		out, err := world.Podman(t.Context(), "exec", m.Name(k)+"-"+role, "sh", "-ec", `id; echo "home $HOME"; touch "$HOME/x" /workspace/x; git init -q /workspace/a; git -C /workspace/a status`)
		if err != nil || !strings.Contains(out, "uid="+uid) || !strings.Contains(out, "home "+home+"\n") {
			t.Errorf("%s: %v\n%s", role, err, out)
		}
	}
	for _, user := range []string{"dev", "root", "1234"} {
		s.Dev.User = user
		must(t, ensure(t, m, s))
		as("agent", "1000", "/home/agent")
		if user == "" || user == "root" {
			as("workspace", "1000", "/home/agent")
			continue
		}
		as("workspace", "1234(dev) gid=1200", "/home/dev")
		if out, err := world.Podman(t.Context(), "exec", m.Name(k)+"-workspace", "cat", "/home/dev/.profile"); err != nil || out != "mine\n" {
			t.Errorf("the home of the image: %q, %v", out, err)
		}
		if _, err := m.Inventory(t.Context(), k); err != nil {
			t.Errorf("looking into it: %v", err)
		}
	}
	for _, user := range []string{"nobody", "daemon", "65534"} {
		s.Dev.User = user
		var image *pods.ImageError
		if err := ensure(t, m, s); !errors.As(err, &image) || !strings.Contains(err.Error(), "it has no user "+user+" that a pod may run as, and .devcontainer.json wants that") {
			t.Errorf("%s: %v", user, err)
		}
	}
}

// serves starts the agent in a container, without the shim, which waits for a service.
func serves(t *testing.T, container string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, w := io.Pipe()
	cmd := exec.CommandContext(ctx, "podman", "exec", container, "opencode", "serve", "--hostname", "127.0.0.1", "--port", "4999")
	cmd.Env, cmd.Stdout, cmd.Stderr = world.Environ(), w, w
	must(t, cmd.Start())
	var said strings.Builder
	for buf := make([]byte, 4096); !strings.Contains(said.String(), "listening"); {
		n, err := r.Read(buf)
		said.Write(buf[:n])
		if err != nil {
			t.Fatalf("opencode serve: %v: %s", err, said.String())
		}
	}
	go io.Copy(io.Discard, r) //nolint:errcheck // so that it is not held up
	out, err := world.Podman(ctx, "exec", container, "wget", "-Y", "off", "-q", "-O", "-", "http://127.0.0.1:4999/doc")
	if err != nil || !strings.Contains(out, `"openapi"`) {
		t.Errorf("it answers %.200q, %v", out, err)
	}
	cancel()
	_ = cmd.Wait() // it was killed
}

func TestAnImageThatCannotBeUsedIsAnsweredByName(t *testing.T) {
	must(t, agentImage())
	m, tools := podManager(t, "badimage")
	box := busyboxEntries(t)
	static := box[0].from
	before := names(t)
	_, err := world.Podman(t.Context(), "create", "--name", "badimage-look-0123", "--label", "devaipod.instance=badimage", "--label", "devaipod.role=look", "localhost/box:latest", "sh")
	must(t, err)
	must(t, m.SweepLooks(t.Context()))
	if after := names(t); after != before {
		t.Errorf("left of a look that was killed:\n%s\nbefore:\n%s", after, before)
	}
	for i, tt := range []struct {
		name, image string
		want        []string
	}{
		{"no shell", build(t, "no-shell", []entry{{name: "app", from: static}}), []string{"no-shell", "it has no shell", "use an image with a shell"}},
		{"a shell of garbage", build(t, "garbage", []entry{{name: "bin/sh", text: "\x7fELF not quite"}}), []string{"garbage", "it has no shell", "exec format error"}},
		{"another machine", build(t, "arm", box, "--arch", "arm64"), []string{"arm", "it is for linux/arm64 and this machine is linux/amd64", "use one for this machine"}},
		{"not there", "localhost/test/nowhere:1", []string{"localhost/test/nowhere:1", "it is not here"}},
		{"a root that is a file", build(t, "odd", []entry{{name: ".devaipod", text: "in the way"}, {name: "bin/sh", from: static}}), []string{"odd", "no container of it runs", "use another"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := pods.Key{Owner: "ann", Repo: "bad", Issue: int64(i + 1)}
			err := ensure(t, m, imageSpec(tools, tt.image, k))
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in: %v", want, err)
				}
			}
			if after := names(t); after != before {
				t.Errorf("left:\n%s\nbefore:\n%s", after, before)
			}
			if _, found := find(t, m, k); found {
				t.Error("there is a pod")
			}
		})
	}
}

// files is a build's context: a tar of a few files.
func files(entries map[string]string) func(context.Context, io.Writer) error {
	return func(_ context.Context, to io.Writer) error {
		w := tar.NewWriter(to)
		for name, text := range entries {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
				return err
			}
			if _, err := io.WriteString(w, text); err != nil {
				return err
			}
		}
		return w.Close()
	}
}

func TestAnImageIsBuiltOnceFromTheRepositorysFiles(t *testing.T) {
	must(t, agentImage())
	ctx := t.Context()
	_, tools := podManager(t, "builds")
	var from pods.Source
	state := filepath.Join(world.Dir, "builds")
	manager := func(r pods.ImageRules) *pods.Manager {
		m, err := pods.New(pods.Config{Instance: "builds", StateDir: state, Backend: podman.NewPods(world.client, "builds", world.log), Images: world.client, Log: world.log, ImageRules: r,
			Source: func(context.Context, pods.Spec) (pods.Source, error) { return from, nil }})
		must(t, err)
		return m
	}
	m := manager(pods.ImageRules{Size: 1 << 30, Memory: 256 << 20})
	base := build(t, "base", busyboxEntries(t))
	k := pods.Key{Owner: "ann", Repo: "built", Issue: 1}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		must(t, m.Remove(ctx, k))
		must(t, m.RemoveBuilds(ctx))
	})
	written := 0
	set := func(content, dockerfile string) {
		write := files(map[string]string{"dev/Containerfile": dockerfile, "hello": "from the repository\n", ".git/hooks/post-checkout": "#!/bin/sh\ntouch /hooked"})
		from = pods.Source{Build: &pods.Build{RepoID: 7, Content: content, Dockerfile: "dev/Containerfile", Args: map[string]string{"WHO": "ann"},
			Files: func(ctx context.Context, w io.Writer) error { written++; return write(ctx, w) }}}
	}
	made := func(m *pods.Manager) error { return ensure(t, m, imageSpec(tools, "", k)) }
	set("one", "FROM "+base+"\nARG WHO\nCOPY hello /hello\nRUN echo built for $WHO >>/hello\n")
	for range 2 {
		must(t, made(m))
	}
	out, err := world.Podman(ctx, "exec", m.Name(k)+"-workspace", "cat", "/hello")
	if err != nil || out != "from the repository\nbuilt for ann\n" || written != 1 {
		t.Errorf("%q, built %d times, %v", out, written, err)
	}
	if _, err := world.Podman(ctx, "exec", m.Name(k)+"-agent", "ls", "/hello"); err == nil {
		t.Error("the agent is in the image, which the workspace alone is to be made from")
	}
	images := func() int {
		found, err := world.client.Images(ctx, "localhost/builds/build-7:")
		must(t, err)
		return len(found)
	}
	set("two", "FROM "+base+"\nCOPY hello /second\n")
	must(t, made(m)) // the older one is in use while this one is built
	set("three", "FROM "+base+"\nCOPY hello /third\n")
	must(t, made(m))
	if n := images(); n != 2 {
		t.Errorf("%d images are kept: the one in use, and the one that was in use", n)
	}

	for _, tt := range []struct {
		name, dockerfile string
		rules            pods.ImageRules
		want             []string
	}{
		{"a step that fails", "FROM " + base + "\nRUN echo told me so; exit 3\n", pods.ImageRules{}, []string{"builds/build-7:", "exit status 3", "its output is in " + state}},
		{"no Containerfile's syntax", "GARBAGE\n", pods.ImageRules{}, []string{"no FROM statement"}},
		{"an image that can't be had", "FROM localhost/nowhere:1\n", pods.ImageRules{}, []string{"localhost/nowhere:1"}},
		{"one that takes too long", "FROM " + base + "\nRUN busybox sleep 60\n", pods.ImageRules{Within: 2 * time.Second}, []string{"took longer than 2s"}},
		{"files that are too large", "FROM " + base + "\n", pods.ImageRules{Size: 10}, []string{"larger than image.size"}},
		{"an image that is too large", "FROM " + base + "\nRUN busybox dd if=/dev/zero of=/x bs=1M count=9 2>/dev/null\n", pods.ImageRules{Size: 6 << 20}, []string{"image.size"}},
	} {
		set(tt.name, tt.dockerfile)
		err := made(manager(tt.rules))
		for _, want := range tt.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: no %q in: %v", tt.name, want, err)
			}
		}
	}
	logs, err := filepath.Glob(filepath.Join(state, "builds/*.log"))
	must(t, err)
	var all strings.Builder
	for _, file := range logs {
		text, err := os.ReadFile(file)
		must(t, err)
		all.Write(text)
	}
	if !strings.Contains(all.String(), "told me so") {
		t.Errorf("the logs of builds:\n%s", all.String())
	}
	if n := images(); n != 2 {
		t.Errorf("%d images after builds that failed", n)
	}
}

func TestAnImageThatCannotBeFetched(t *testing.T) {
	must(t, agentImage())
	_, tools := podManager(t, "pulls")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	gone := l.Addr().String() // nobody listens there
	must(t, l.Close())
	for _, tt := range []struct {
		image string
		rules pods.ImageRules
		want  []string
	}{
		{gone + "/some/image:1", pods.ImageRules{}, []string{gone + "/some/image:1", "connection refused", "is its registry reachable"}},
		{gone + "/some/image:1", pods.ImageRules{NoPull: true}, []string{"is not fetched (image.pull"}},
		{"localhost/some/image:1", pods.ImageRules{}, []string{"it is not here", "build it"}},
	} {
		m, err := pods.New(pods.Config{Instance: "pulls", StateDir: filepath.Join(world.Dir, "pulls"), Backend: podman.NewPods(world.client, "pulls", world.log), Images: world.client, Log: world.log, ImageRules: tt.rules,
			Source: func(context.Context, pods.Spec) (pods.Source, error) { return pods.Source{Image: tt.image}, nil }})
		must(t, err)
		err = ensure(t, m, imageSpec(tools, "", pods.Key{Owner: "ann", Repo: "pulled", Issue: 1}))
		for _, want := range tt.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("no %q in: %v", want, err)
			}
		}
	}
}

// What is in the cache of images can be damaged.
func TestAnArchiveThatIsBroken(t *testing.T) {
	root, err := testkit.Root()
	must(t, err)
	whole, err := busybox()
	must(t, err)
	for name, content := range map[string][]byte{"cut off": whole[:len(whole)/2], "no archive": []byte(strings.Repeat("garbage ", 1000))} {
		cache := t.TempDir()
		script := func(args ...string) (string, error) {
			cmd := exec.Command(filepath.Join(root, "compose/images/build"), args...)
			cmd.Env = append(world.Environ(), "DEVAIPOD_CACHE="+cache)
			out, err := cmd.CombinedOutput()
			return strings.TrimSpace(string(out)), err
		}
		key, err := script("key", "agent")
		must(t, err)
		file := filepath.Join(cache, "images", "agent-"+key+".tar")
		must(t, os.MkdirAll(filepath.Dir(file), 0o700))
		must(t, os.WriteFile(file, content, 0o600))
		out, err := script("load", "agent", "localhost/test/damaged:1")
		if err == nil || !strings.Contains(out, "importing the agent image as localhost/test/damaged:1 went wrong") || !strings.HasSuffix(out, "remove it, and it is built anew: "+file) {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		if ok, err := world.client.ImageExists(t.Context(), "localhost/test/damaged:1"); err != nil || ok {
			t.Errorf("%s: there is an image: %v, %v", name, ok, err)
		}
	}
}
