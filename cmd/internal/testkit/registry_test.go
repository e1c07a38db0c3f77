package testkit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// A hub is a registry on this machine's loopback, and a podman that speaks to it in
// clear.
type hub struct {
	addr   string
	client *podman.Client

	mu     sync.Mutex
	faults map[string]http.HandlerFunc // by repository
	asked  map[string]int              // blobs of a repository
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{faults: map[string]http.HandlerFunc{}, asked: map[string]int{}}
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		h.mu.Lock()
		fault := h.faults[repo]
		blob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
		if blob {
			h.asked[repo]++
		}
		h.mu.Unlock()
		if fault != nil && (blob || repo == "locked") {
			fault(w, r)
			return
		}
		store.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	h.faults["broken"] = func(w http.ResponseWriter, r *http.Request) {
		got := httptest.NewRecorder()
		store.ServeHTTP(got, r)
		body := got.Body.Bytes()
		if !bytes.HasPrefix(body, []byte("{")) { // a layer
			body[len(body)/2]++
		}
		_, _ = w.Write(body)
	}
	h.addr = server.Listener.Addr().String()
	dir := filepath.Join(world.Dir, "hub")
	must(t, os.MkdirAll(dir, 0o700))
	conf := filepath.Join(dir, "registries.conf")
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "[[registry]]\nlocation = %q\ninsecure = true\n", h.addr), 0o600))
	t.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
	socket := filepath.Join(dir, "podman.sock")
	uri, err := podman.Find(t.Context(), podman.FindConfig{URI: "unix://" + socket, Start: true, SocketPath: socket, Log: world.log})
	must(t, err)
	t.Cleanup(func() {
		text, err := os.ReadFile(filepath.Join(dir, "podman.pid"))
		must(t, err)
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		must(t, err)
		must(t, syscall.Kill(pid, syscall.SIGTERM))
	})
	h.client, err = podman.Connect(t.Context(), uri)
	must(t, err)
	return h
}

// fault has a repository's blobs (of "locked" all) answered by f.
func (h *hub) fault(repo string, f http.HandlerFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults[repo] = f
}

func (h *hub) blobs(repo string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked[repo]
}

func (h *hub) ref(repo string) string { return h.addr + "/" + repo + ":1" }

// push makes images of one repository, one for each kind of machine, and has podman
// bring them there; none stays here.
func (h *hub) push(t *testing.T, repo string, arches ...string) (ref string) {
	t.Helper()
	do := func(args ...string) {
		t.Helper()
		_, err := world.Podman(t.Context(), args...)
		must(t, err)
	}
	list := "localhost/lists/" + repo + ":1"
	do("manifest", "create", list)
	var local []string
	for _, arch := range arches {
		name := repo + "-" + arch
		image := build(t, name, append(busyboxEntries(t), entry{name: "etc/which", text: name}), "--arch", arch)
		do("manifest", "add", list, "containers-storage:"+image)
		local = append(local, image)
	}
	do("manifest", "push", "--tls-verify=false", "--all", list, "docker://"+h.ref(repo))
	do("manifest", "rm", list)
	do(append([]string{"rmi"}, local...)...)
	return h.ref(repo)
}

// A descriptor says what an image consists of (OCI image specification, descriptor.md).
type descriptor struct {
	MediaType string            `json:"mediaType"`
	Digest    string            `json:"digest"`
	Size      int               `json:"size"`
	Platform  map[string]string `json:"platform,omitempty"`
}

// put brings an image with little in it there, without podman, and returns its digest;
// with more machines than one, a list of such.
func (h *hub) put(t *testing.T, repo string, arches ...string) (digest string) {
	t.Helper()
	send := func(method, path, kind string, content any) descriptor {
		t.Helper()
		text, ok := content.([]byte)
		if !ok {
			var err error
			text, err = json.Marshal(content)
			must(t, err)
		}
		d := descriptor{MediaType: kind, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(text)), Size: len(text)}
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+h.addr+"/v2/"+repo+strings.ReplaceAll(path, "DIGEST", d.Digest), bytes.NewReader(text))
		must(t, err)
		req.Header.Set("Content-Type", kind)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s", method, req.URL, resp.Status)
		}
		return d
	}
	const oci, blob = "application/vnd.oci.image.", "/blobs/uploads/?digest=DIGEST"
	var list []descriptor
	for _, arch := range arches {
		var content bytes.Buffer
		must(t, files(map[string]string{"which": repo + arch})(t.Context(), &content))
		layer := send(http.MethodPost, blob, oci+"layer.v1.tar", content.Bytes())
		config := send(http.MethodPost, blob, oci+"config.v1+json", map[string]any{
			"os": "linux", "architecture": arch, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}}})
		manifest := map[string]any{"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": config, "layers": []descriptor{layer}}
		if len(arches) == 1 {
			return send(http.MethodPut, "/manifests/1", oci+"manifest.v1+json", manifest).Digest
		}
		d := send(http.MethodPut, "/manifests/DIGEST", oci+"manifest.v1+json", manifest)
		d.Platform = map[string]string{"os": "linux", "architecture": arch}
		list = append(list, d)
	}
	return send(http.MethodPut, "/manifests/1", oci+"index.v1+json", map[string]any{"schemaVersion": 2, "mediaType": oci + "index.v1+json", "manifests": list}).Digest
}

// manager is one whose pods are made from an image of the hub.
func (h *hub) manager(t *testing.T, image *string, images pods.Images, r pods.ImageRules, used *float64) *pods.Manager {
	t.Helper()
	m, err := pods.New(pods.Config{Instance: "hub", StateDir: filepath.Join(world.Dir, "hub"), Backend: podman.NewPods(h.client, "hub", world.log), Images: images, Log: world.log, ImageRules: r,
		DiskUsed: func(string) (float64, error) { return *used, nil },
		Source:   func(context.Context, pods.Spec) (pods.Source, error) { return pods.Source{Image: *image}, nil }})
	must(t, err)
	return m
}

func TestAnImageIsFetchedFromARegistry(t *testing.T) {
	must(t, agentImage())
	_, tools := podManager(t, "hub")
	h := newHub(t)
	var image string
	var full float64
	k := pods.Key{Owner: "ann", Repo: "hub", Issue: 1}

	image = h.push(t, "both", "arm64", "amd64")
	m := h.manager(t, &image, h.client, pods.ImageRules{Size: 1 << 30}, &full)
	must(t, ensure(t, m, imageSpec(tools, "", k)))
	out, err := world.Podman(t.Context(), "exec", m.Name(k)+"-workspace", "cat", "/etc/which")
	if err != nil || out != "both-amd64" {
		t.Errorf("of a list of images, this machine's: %q, %v", out, err)
	}
	must(t, m.Stop(t.Context(), k))
	// While there is the pod, its image stays.
	if did, err := m.Collect(t.Context(), pods.Limits{ImageAge: time.Nanosecond}); err != nil || len(did.Removed) > 0 {
		t.Errorf("collected %+v, %v", did, err)
	}
	must(t, m.Remove(t.Context(), k))
	if did, err := m.Collect(t.Context(), pods.Limits{ImageAge: time.Nanosecond}); err != nil || !slices.Contains(did.Removed, "image "+image) {
		t.Errorf("collected without the pod %+v, %v", did, err)
	}

	h.put(t, "broken", "amd64")
	h.put(t, "slow", "amd64")
	h.put(t, "arm", "arm64")
	h.put(t, "others", "arm64", "s390x")
	h.fault("locked", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	left := make(chan struct{}, 100)
	h.fault("slow", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write([]byte("x"))
		w.(http.Flusher).Flush()
		<-r.Context().Done() // until the client goes
		left <- struct{}{}
	})
	for _, tt := range []struct {
		repo  string
		rules pods.ImageRules
		want  []string
	}{
		{"missing", pods.ImageRules{}, []string{"there is none so called"}},
		{"locked", pods.ImageRules{}, []string{"does not let podman read it: podman login"}},
		{"broken", pods.ImageRules{}, []string{"what came is not what its registry tells of it"}},
		{"slow", pods.ImageRules{Within: 2 * time.Second}, []string{"took longer than 2s (image.within)"}},
		{"arm", pods.ImageRules{}, []string{"it is for linux/arm64 and this machine is linux/amd64"}},
		{"others", pods.ImageRules{}, []string{"amd64", "not made for this kind of machine"}},
		{"both", pods.ImageRules{Size: 1 << 20}, []string{"bytes and may have 1048576 (image.size); use a smaller one"}},
	} {
		image = h.ref(tt.repo)
		m := h.manager(t, &image, h.client, tt.rules, &full)
		err := ensure(t, m, imageSpec(tools, "", k))
		var bad *pods.ImageError
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v", tt.repo, err)
			continue
		}
		for _, want := range append(tt.want, "the image "+image+" can't be used") {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: no %q in: %v", tt.repo, want, err)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: it takes several lines: %q", tt.repo, err)
		}
		if ok, err := h.client.ImageExists(t.Context(), image); err != nil || ok != (tt.repo == "arm") {
			t.Errorf("%s: is here: %v, %v", tt.repo, ok, err)
		}
		if tt.repo == "both" { // it is not fetched again and again
			before := h.blobs("both")
			if again := ensure(t, m, imageSpec(tools, "", k)); again == nil || again.Error() != err.Error() || h.blobs("both") != before {
				t.Errorf("again: %v; %d blobs more", again, h.blobs("both")-before)
			}
		}
	}
	select {
	case <-left:
	case <-t.Context().Done():
		t.Error("podman went on with what was given up")
	}
	t.Run("and goes", func(t *testing.T) { fetchedAndIdle(t, h) })
}

// killedPull is podman for a service that is killed when it has just fetched an image.
type killedPull struct {
	*podman.Client
	kill func()
}

func (c killedPull) ImagePull(ctx context.Context, ref string, progress io.Writer) error {
	if err := c.Client.ImagePull(ctx, ref, progress); err != nil {
		return err
	}
	c.kill()
	runtime.Goexit()
	return nil
}

// What the instance fetched goes when no pod has asked for it for long, or the disk is
// full, and what it did not fetch, or somebody else has a use for, stays.
func fetchedAndIdle(t *testing.T, h *hub) {
	ctx := t.Context()
	var image string
	var full float64
	m := h.manager(t, &image, h.client, pods.ImageRules{}, &full)
	// The image is fetched, and then there is no agent for the pod.
	fetch := func(ctx context.Context, m *pods.Manager, ref string) error {
		image = ref
		return ensure(t, m, pods.Spec{Key: pods.Key{Owner: "ann", Repo: "idle", Issue: 1}, AgentImage: "localhost/nowhere:1"})
	}
	do := func(args ...string) {
		t.Helper()
		_, err := world.Podman(ctx, args...)
		must(t, err)
	}
	for _, repo := range []string{"young", "old", "tagged", "running", "before", "moved", "killed"} {
		h.put(t, repo, "amd64")
	}
	do("pull", "--quiet", "--tls-verify=false", h.ref("before"))
	for _, repo := range []string{"young", "old", "tagged", "running", "before", "moved"} {
		if err := fetch(ctx, m, h.ref(repo)); err == nil || !strings.Contains(err.Error(), "localhost/nowhere:1") {
			t.Fatalf("%s: %v", repo, err)
		}
	}
	digested := h.addr + "/digested@" + h.put(t, "digested", "amd64")
	_ = fetch(ctx, m, digested) // as above
	isDigested := func(want bool) {
		t.Helper()
		if ok, err := h.client.ImageExists(ctx, digested); err != nil || ok != want {
			t.Errorf("%s is here: %v, want %v (%v)", digested, ok, want, err)
		}
	}
	isDigested(true)
	do("tag", h.ref("tagged"), "localhost/mine:1")
	do("create", "--name", "runs", h.ref("running"), "sh")
	do("tag", h.ref("before"), h.ref("moved"))
	dying, kill := context.WithCancel(ctx)
	dead := h.manager(t, &image, killedPull{h.client, kill}, pods.ImageRules{}, &full)
	image = h.ref("killed")
	if _, err := dead.Ensure(dying, pods.Spec{Key: pods.Key{Owner: "ann", Repo: "idle", Issue: 1}, AgentImage: "localhost/nowhere:1"}); !errors.Is(err, context.Canceled) {
		t.Fatalf("a service that is killed: %v", err)
	}

	left := func() (out []string) {
		t.Helper()
		all, err := h.client.Images(ctx, h.addr+"/")
		must(t, err)
		for _, ref := range all {
			out = append(out, strings.TrimSuffix(strings.TrimPrefix(ref, h.addr+"/"), ":1"))
		}
		slices.Sort(out)
		return out
	}
	all := left()
	m = h.manager(t, &image, h.client, pods.ImageRules{}, &full) // another process
	collect := func(lim pods.Limits, want ...string) {
		t.Helper()
		did, err := m.Collect(ctx, lim)
		if must(t, err); !slices.Equal(left(), want) {
			t.Errorf("%+v: left %v, want %v; %+v", lim, left(), want, did)
		}
	}
	// Whatever their makers say of when they were made.
	collect(pods.Limits{ImageAge: time.Hour, Watermark: 0.9, Dry: true}, all...)
	collect(pods.Limits{ImageAge: time.Hour, Watermark: 0.9}, all...)
	notes, err := filepath.Glob(filepath.Join(world.Dir, "hub/pulled/*.json"))
	must(t, err)
	for _, file := range notes {
		when := time.Now().Add(-2 * time.Hour)
		must(t, os.Chtimes(file, when, when))
	}
	_ = fetch(ctx, m, h.ref("young")) // by a pod that has just asked for it
	collect(pods.Limits{ImageAge: time.Hour, Dry: true}, all...)
	isDigested(true)
	collect(pods.Limits{ImageAge: time.Hour, Watermark: 0.9}, "before", "moved", "running", "tagged", "young")
	isDigested(false)
	full = 1
	collect(pods.Limits{Watermark: 0.9}, "before", "moved", "running", "tagged")
	// Once nobody else has a use for them.
	do("rm", "runs")
	do("untag", h.ref("tagged"), "localhost/mine:1")
	must(t, m.RemovePulled(ctx))
	if got := left(); !slices.Equal(got, []string{"before", "moved"}) {
		t.Errorf("in the end: %v", got)
	}
	if notes, err := filepath.Glob(filepath.Join(world.Dir, "hub/pulled/*.json")); err != nil || len(notes) > 0 {
		t.Errorf("notes left: %v, %v", notes, err)
	}
	do("rmi", h.ref("before"), h.ref("moved"))
}
