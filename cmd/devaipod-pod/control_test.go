package main_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/conform"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

// A lone control is one without an agent: gate and pod-api, as the program that is
// shipped, in front of a model.
type lone struct {
	t    testing.TB
	dir  string
	said bytes.Buffer
	cmd  *exec.Cmd
}

func newLone(t testing.TB, model http.HandlerFunc) *lone {
	t.Helper()
	l := &lone{t: t, dir: t.TempDir()}
	for _, d := range []string{"run", "a", "w", "usage"} {
		l.must(os.Mkdir(l.path(d), 0o755))
	}
	m := httptest.NewServer(model)
	t.Cleanup(m.Close)
	l.must(podfile.Write(l.path("run"), &podfile.File{
		Repo: "ann/hello", Issue: 3, AgentToken: "agent", WorkspaceToken: "workspace", Agent: "opencode",
		Model: podfile.Model{API: podfile.APIOpenAI, Name: "m", BaseURL: m.URL + "/v1"}, Task: podfile.Task{Key: "k", Prompt: "p"},
	}))
	l.must(podfile.WritePolicy(l.path("run"), podfile.Policy{Key: "sk-the-key"}))
	buildPod(t, l.path("devaipod-pod"))
	return l
}

// buildPod builds the program as it is shipped.
func buildPod(t testing.TB, path string) string {
	t.Helper()
	build := exec.Command("go", "build", "-trimpath", "-tags=nomsgpack", "-ldflags", "-s -w", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func (l *lone) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lone) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("%v; control said: %s", err, l.said.String())
	}
}

// start starts control, and waits until its gate answers.
func (l *lone) start() {
	l.t.Helper()
	l.cmd = exec.Command(l.path("devaipod-pod"), "control", "--service", l.path("run"), "--agent", l.path("a"), "--workspace", l.path("w"), "--usage", l.path("usage"))
	l.cmd.Stderr = &l.said
	l.must(l.cmd.Start())
	l.t.Cleanup(l.kill)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, _, err := l.ask("GET", "/model/v1/models", "")
		if err == nil && status != 0 {
			return
		}
		if time.Now().After(end) {
			l.must(fmt.Errorf("the gate does not answer: %w", err))
		}
	}
}

func (l *lone) kill() {
	if l.cmd.ProcessState == nil {
		l.must(l.cmd.Process.Kill())
		_ = l.cmd.Wait() // killed
	}
}

func (l *lone) dial() (net.Conn, error) { return net.Dial("unix", l.path("a/"+podfile.GateSocket)) }

// ask sends the gate one request, as the agent.
func (l *lone) ask(method, path, body string) (status int, answer string, err error) {
	conn, err := l.dial()
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return 0, "", err
	}
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer agent\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", method, path, len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// chat asks the model.
func (l *lone) chat() (status int, answer string) {
	l.t.Helper()
	status, answer, err := l.ask("POST", "/model/v1/chat/completions", `{"model":"m","messages":[]}`)
	l.must(err)
	return status, answer
}

// memory is control's, in MB, by proc(5).
func (l *lone) memory(field string) float64 {
	l.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.cmd.Process.Pid))
	l.must(err)
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), field); ok {
			var kb float64
			_, err := fmt.Sscan(rest, &kb)
			l.must(err)
			return kb / 1000
		}
	}
	l.t.Fatal("no such field: ", field)
	return 0
}

const used110 = `{"usage":{"prompt_tokens":100,"completion_tokens":10}}`

func answers(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, used110) }

// Each probe is told by name. How the agent's clone stands, the service knows: what it
// says is passed on, and what it does not know is said.
func TestReadinessAndTheStateOfTheClone(t *testing.T) {
	l := newLone(t, answers)
	l.start()
	api := podapi.NewClient(l.path("run/" + podfile.ControlSocket)).Through(conform.Transport)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://pod/readyz", nil)
	l.must(err)
	resp, err := api.Transport().RoundTrip(req)
	l.must(err)
	defer resp.Body.Close()
	l.must(podfile.WritePolicy(l.path("run"), podfile.Policy{Key: "sk-the-key", Budget: usage.Budget{Tokens: 5_000_000, Money: 2_500_000_000}}))
	l.chat()
	sum, err := api.Summary(t.Context())
	l.must(err)
	if u := sum.Used; u == nil || u.Requests != 1 || u.Tokens != 110 || u.Budget == nil || u.Budget.Tokens != 5_000_000 || u.Budget.Cost != "$2.50" {
		t.Errorf("used are %+v", sum.Used)
	}
	probes, err := io.ReadAll(resp.Body)
	l.must(err)
	if got := string(probes); resp.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(got, "agent: starting\nclone: not there yet") || !strings.HasSuffix(got, "\nmodel: ok\n") {
		t.Errorf("%s %q", resp.Status, got)
	}
	if _, err := api.GitStatus(t.Context()); err == nil || !strings.Contains(err.Error(), "asking the service") {
		t.Errorf("with no service: %v", err)
	}
	const known = `{"at":"2026-01-02T03:04:05Z","branch":"agent/3-x","ahead":1,"behind":0,"unpushed":[{"id":"abc","subject":"s"}],"changes":[{"path":"f","how":"added"}]}`
	text := ""
	service, err := net.Listen("unix", l.path("run/"+podfile.ServiceSocket))
	l.must(err)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != podfile.GitStatusPath || text == "" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, text)
	}))
	srv.Listener = service
	srv.Start()
	defer srv.Close()
	if _, err := api.GitStatus(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing of the clone is saved yet") {
		t.Errorf("with nothing saved: %v", err)
	}
	text = known
	if got, err := api.GitStatus(t.Context()); err != nil || string(got) != known {
		t.Errorf("%s, %v", got, err)
	}
	text = `{"at": 1}`
	if got, err := api.GitStatus(t.Context()); err == nil {
		t.Errorf("nonsense: %s", got) // the document's word, which tests hold it to
	}
}

// An agent reaches none of the person's side: neither by its gate, whatever it asks for,
// nor by its sockets.
func TestAnAgentDoesNotReachThePodAPI(t *testing.T) {
	l := newLone(t, answers)
	service, err := net.Listen("unix", l.path("run/"+podfile.ServiceSocket)) // where its git leads to
	l.must(err)
	srv := &http.Server{Handler: http.NotFoundHandler()}
	defer srv.Close()     //nolint:errcheck // the test is over
	go srv.Serve(service) //nolint:errcheck // the same
	l.start()
	doc, err := conform.Read()
	l.must(err)
	if len(doc.Paths.Map()) < 10 {
		t.Fatalf("only %d paths", len(doc.Paths.Map()))
	}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			for _, way := range []string{path, "/model/.." + path, "//pod" + path} {
				status, answer, err := l.ask(method, way, `{"text":"do as I say"}`)
				if err == nil && (status < 300 || strings.Contains(answer, "openapi: 3")) {
					t.Errorf("%s %s: %d %.200s", method, way, status, answer)
				}
			}
		}
	}
	if info, err := os.Stat(l.path("run/" + podfile.ControlSocket)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the pod-api's socket is %v, %v", info.Mode(), err)
	}
	events, err := podapi.TranscriptPage(l.path("usage"), 1<<60, 1000)
	l.must(err)
	for _, ev := range events {
		if ev.Type == podapi.EventPerson {
			t.Errorf("the agent was told %q", ev.Text)
		}
	}
}

// What an agent does to its gate keeps the person's side neither from answering nor
// within its memory.
func TestAFloodAtTheGate(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur = limit.Max; limit.Max < 11_000 {
		t.Fatalf("this needs 11,000 open files (ulimit -n), and may have %d", limit.Max)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	l := newLone(t, answers)
	l.start()
	api := podapi.NewClient(l.path("run/" + podfile.ControlSocket)).Through(conform.Transport)
	beginnings := []string{
		"", "POST /model/v1/chat/completions HTTP/1.1\r\nHost: x\r\nX: ", "CONNECT a.example.org:443 HTTP/1.1\r\n",
		"POST /model/v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer agent\r\nContent-Length: 60000000\r\n\r\n{\"model\":\"m\"",
		"GET / HTTP/1.1\r\n" + strings.Repeat("X-Flood: "+strings.Repeat("y", 1000)+"\r\n", 60), "\x16\x03\x01\x02\x00\x01\x00", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"POST /work/ann/hello.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer agent\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
	}
	var conns []net.Conn
	for i := range 10_000 {
		conn, err := l.dial()
		if err != nil { // the queue of those that wait is full
			time.Sleep(time.Millisecond)
			continue
		}
		conns = append(conns, conn)
		_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // it may be closed already
		_, _ = io.WriteString(conn, beginnings[i%len(beginnings)])
		if i%1000 == 0 {
			if _, err := api.Summary(t.Context()); err != nil {
				t.Fatalf("after %d connections the person's side does not answer: %v", i, err)
			}
		}
	}
	if len(conns) < 5000 {
		t.Errorf("only %d connections were made", len(conns))
	}
	if _, err := api.Summary(t.Context()); err != nil {
		t.Errorf("the person's side does not answer: %v", err)
	}
	if most := l.memory("VmHWM:"); most > 250 {
		t.Errorf("control has taken %.0f MB", most)
	} else {
		t.Logf("%d connections, %.0f MB at most", len(conns), most)
	}
	for _, c := range conns {
		_ = c.Close() // perhaps closed by the gate
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if status, _, err := l.ask("POST", "/model/v1/chat/completions", `{"model":"m","messages":[]}`); err == nil && status == http.StatusOK {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the agent itself is not served afterwards: %d %v", status, err)
		}
	}
}

// A full disk: nothing is sent that can't be counted, and all goes on when there is
// room.
func TestAGateOnAFullDiskIsClosed(t *testing.T) {
	asked := 0
	l := newLone(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			asked++
		}
		answers(w, r)
	})
	l.start()
	limit := func(n uint64) {
		l.must(unix.Prlimit(l.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: unix.RLIM_INFINITY}, nil))
	}
	if status, answer := l.chat(); status != 200 {
		t.Fatal(status, answer)
	}
	limit(10)
	if status, answer := l.chat(); status != 503 || !strings.Contains(answer, "keeping the account") || asked != 1 {
		t.Errorf("%d %q, the model was asked %d times", status, answer, asked)
	}
	limit(unix.RLIM_INFINITY)
	if status, answer := l.chat(); status != 200 || asked != 2 {
		t.Errorf("%d %q, the model was asked %d times", status, answer, asked)
	}
	if entries, err := usage.Read(l.path("usage")); err != nil || usage.Sum(entries).Tokens.Sum() != 220 {
		t.Errorf("%+v %v", entries, err)
	}
}

func TestADamagedAccountClosesTheGateForTheModelAlone(t *testing.T) {
	l := newLone(t, answers)
	l.must(os.WriteFile(l.path("usage/"+usage.FileName), []byte("{\"n\":1,\"inp\n{}\n"), 0o600))
	l.start()
	if status, answer := l.chat(); status != 503 || !strings.Contains(answer, "usage.jsonl, line 1") {
		t.Errorf("%d %q", status, answer)
	}
	sum, err := podapi.NewClient(l.path("run/" + podfile.ControlSocket)).Through(conform.Transport).Summary(t.Context())
	if err != nil || !strings.Contains(sum.Model.LastError, "line 1") {
		t.Errorf("%+v %v", sum.Model, err)
	}
}

// A gate that is killed while the model works has counted what that may cost.
func TestAGateThatIsKilledHasCounted(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	var before atomic.Bool
	l := newLone(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && before.CompareAndSwap(false, true) {
			close(arrived)
			<-release
		}
		answers(w, r)
	})
	defer close(release)
	l.start()
	go func() {
		_, _, _ = l.ask("POST", "/model/v1/chat/completions", `{"model":"m","messages":[],"max_tokens":500}`)
	}() // it is cut off
	<-arrived
	l.kill()
	l.start()
	if status, answer := l.chat(); status != 200 {
		t.Fatal(status, answer)
	}
	entries, err := usage.Read(l.path("usage"))
	if used := usage.Sum(entries); err != nil || used.Requests != 2 || used.Tokens.Output != 510 || used.Tokens.Input < 110 {
		t.Errorf("%+v %v", used, err)
	}
}
