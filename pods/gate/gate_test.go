package gate_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/gate"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

const (
	key       = "sk-the-real-key"
	agentTok  = "agent-token"
	workTok   = "workspace-token"
	goodChat  = `{"model":"m","messages":[],"tools":[{"type":"function","function":{"name":"bash"}}]}`
	chatRoute = "/model/v1/chat/completions"
)

// place is a gate between a model and a service that note what reaches them.
type place struct {
	config     gate.Config
	policy     podfile.Policy
	gate       *gate.Gate
	agent      *httptest.Server
	workspace  *httptest.Server
	modelSaw   []*http.Request
	serviceSaw []*http.Request
}

// What an honest agent may well send.
func TestWhatIsAdmittedGoesOnByteForByte(t *testing.T) {
	for name, tt := range map[string]struct{ api, path, body string }{
		"tools of its own":                  {podfile.APIOpenAI, chatRoute, goodChat},
		"a key that comes in two objects":   {podfile.APIOpenAI, chatRoute, `{"model":"m","messages":[{"role":"a","x":[{"role":1},{"role":2}]},{"role":"b"}],"n":1.50}`},
		"a data URL":                        {podfile.APIOpenAI, chatRoute, `{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]}]}`},
		"tool arguments that hold anything": {podfile.APIAnthropic, "/model/v1/messages", `{"model":"m","messages":[{"content":[{"type":"tool_use","input":{"source":{"type":"url"},"image_url":"http://x"}}]}],"tools":[{"name":"a"},{"type":"custom","name":"b"}]}`},
		"an image in itself":                {podfile.APIAnthropic, "/model/v1/messages", `{"model":"m","messages":[{"content":[{"type":"image","source":{"type":"base64","data":"AA"}}]}]}`},
		"markup that JSON need not escape":  {podfile.APIOpenAI, chatRoute, `{"model":"m","messages":[{"content":"<a> & \u003c \/"}]}`},
	} {
		got := make(chan string, 1)
		p := newPlace(t, tt.api, func(_ http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			got <- fmt.Sprint(string(b), err)
		})
		if resp, body := ask(t, p.agent, "POST", tt.path, agentTok, tt.body); resp.StatusCode != 200 {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		} else if sent := <-got; sent != tt.body+"<nil>" {
			t.Errorf("%s: the model got %s", name, sent)
		}
	}
}

func newPlace(t *testing.T, api string, model http.HandlerFunc) *place {
	t.Helper()
	return newPlaceFor(t, api, model)
}

func newPlaceFor(t testing.TB, api string, model http.HandlerFunc) *place {
	t.Helper()
	p := &place{policy: podfile.Policy{Key: key}}
	m := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.modelSaw = append(p.modelSaw, r)
		model(w, r)
	}))
	t.Cleanup(m.Close)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	service := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.serviceSaw = append(p.serviceSaw, r)
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		w.Header().Set("Set-Cookie", "a=b")
		fmt.Fprint(w, "from the service")
	}))
	service.Listener = l
	service.Start()
	t.Cleanup(service.Close)
	p.config = gate.Config{
		File: &podfile.File{
			Repo: "ann/hello", AgentToken: agentTok, WorkspaceToken: workTok,
			Model: podfile.Model{API: api, Name: "m", BaseURL: m.URL + "/v1/"},
		},
		Policy: func() (podfile.Policy, error) { return p.policy, nil }, Usage: account(t), Backoff: time.Millisecond,
		Service: func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", socket) },
		Log:     slog.New(slog.DiscardHandler),
	}
	if p.gate, err = gate.New(p.config); err != nil {
		t.Fatal(err)
	}
	p.agent, p.workspace = httptest.NewServer(p.gate.Handler(gate.Agent)), httptest.NewServer(p.gate.Handler(gate.Workspace))
	t.Cleanup(p.agent.Close)
	t.Cleanup(p.workspace.Close)
	return p
}

func keyed() (podfile.Policy, error) { return podfile.Policy{Key: key}, nil }

func account(t testing.TB) *usage.Journal {
	t.Helper()
	j, err := usage.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func ask(t *testing.T, server *httptest.Server, method, path, token, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Cookie", "secret=1")
	req.Header.Set("X-Forwarded-For", "1.2.3.4")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestTheModelGetsTheRealKeyAndTheAgentNeverDoes(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		w.Header().Set("Set-Cookie", key)
		fmt.Fprint(w, "hello")
	})
	resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat)
	if resp.StatusCode != 200 || body != "hello" {
		t.Fatalf("%s %q", resp.Status, body)
	}
	saw := p.modelSaw[0]
	if saw.URL.Path != "/v1/chat/completions" || saw.Header.Get("Authorization") != "Bearer "+key {
		t.Errorf("the model saw %s with %q", saw.URL, saw.Header)
	}
	if saw.Header.Get("Cookie") != "" || saw.Header.Get("X-Forwarded-For") != "" {
		t.Errorf("the agent's headers reached the model: %q", saw.Header)
	}
	if got := fmt.Sprint(resp.Header); strings.Contains(got, key) {
		t.Errorf("the key came back: %s", got)
	}
	if tr := p.gate.Traffic(); tr.Requests != 1 || tr.InFlight != 0 || tr.LastStatus != 200 || tr.LastError != "" || tr.Failures != 0 {
		t.Errorf("traffic %+v", tr)
	}
}

func TestAnthropicGetsItsOwnHeaderAndTakesTheTokenThere(t *testing.T) {
	p := newPlace(t, podfile.APIAnthropic, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	req, err := http.NewRequest("POST", p.agent.URL+"/model/v1/messages", strings.NewReader(`{"model":"m","tools":[{"name":"bash"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", agentTok)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if saw := p.modelSaw[0]; resp.StatusCode != 200 || saw.Header.Get("X-Api-Key") != key || saw.Header.Get("Authorization") != "" || saw.Header.Get("Anthropic-Version") == "" {
		t.Errorf("%s, the model saw %q", resp.Status, saw.Header)
	}
}

func TestWhatTheGateRefuses(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	for name, tt := range map[string]struct {
		server             *httptest.Server
		method, path, body string
		token              string
		want               int
	}{
		"no token":                           {p.agent, "POST", chatRoute, goodChat, "", 401},
		"a wrong token":                      {p.agent, "POST", chatRoute, goodChat, agentTok + "x", 401},
		"the workspace's token":              {p.agent, "POST", chatRoute, goodChat, workTok, 401},
		"the agent's token elsewhere":        {p.workspace, "GET", "/work/ann/hello.git/info/refs?service=git-upload-pack", "", agentTok, 401},
		"a model for the workspace":          {p.workspace, "POST", chatRoute, goodChat, workTok, 403},
		"a push of the workspace":            {p.workspace, "POST", "/work/ann/hello.git/git-receive-pack", "", workTok, 403},
		"a push's refs of the workspace":     {p.workspace, "GET", "/work/ann/hello.git/info/refs?service=git-receive-pack", "", workTok, 403},
		"another route of the model":         {p.agent, "POST", "/model/v1/files", "{}", agentTok, 403},
		"the other API's route":              {p.agent, "POST", "/model/v1/messages", "{}", agentTok, 403},
		"a path that climbs":                 {p.agent, "POST", "/model/v1/chat/completions/../../files", "{}", agentTok, 403},
		"what was saved, for the workspace":  {p.workspace, "GET", podfile.RestorePath, "", workTok, 403},
		"what was saved, by another's token": {p.agent, "GET", podfile.RestorePath, "", workTok, 401},
		"what was saved, without a token":    {p.agent, "GET", podfile.RestorePath, "", "", 401},
		"what is saved, by a push":           {p.agent, "POST", podfile.RestorePath, "", agentTok, 403},
		"below what was saved":               {p.agent, "GET", podfile.RestorePath + "/4", "", agentTok, 403},
		"the saver's own routes":             {p.agent, "GET", podfile.SavePath + "/info/refs?service=git-upload-pack", "", agentTok, 403},
		"another repository":                 {p.agent, "GET", "/work/ann/other.git/info/refs?service=git-upload-pack", "", agentTok, 403},
		"the service's own routes":           {p.agent, "GET", "/dial/model", "", agentTok, 403},
		"the forge":                          {p.agent, "GET", "/api/v1/user", "", agentTok, 403},
		"a proxy request":                    {p.agent, "CONNECT", "/", "", agentTok, 407},
		"another model":                      {p.agent, "POST", chatRoute, `{"model":"dear"}`, agentTok, 400},
		"a request that is not JSON":         {p.agent, "POST", chatRoute, `{"tools":`, agentTok, 400},
	} {
		resp, body := ask(t, tt.server, tt.method, tt.path, tt.token, tt.body)
		// A cleaned path is answered with a redirect, which is a refusal too.
		if resp.StatusCode != tt.want && !(strings.Contains(tt.path, "..") && resp.StatusCode/100 == 3) {
			t.Errorf("%s: %s %q, want %d", name, resp.Status, body, tt.want)
		}
	}
	if len(p.modelSaw)+len(p.serviceSaw) != 0 {
		t.Errorf("something got through: %d to the model, %d to the service", len(p.modelSaw), len(p.serviceSaw))
	}
}

func TestGitGoesToTheServiceWithoutCredentials(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, func(http.ResponseWriter, *http.Request) {})
	const own, other = "/work/ann/hello.git/info/refs?service=git-upload-pack", "/git/git.example.org/a%2fb/info/refs?service=git-upload-pack"
	for _, server := range []struct {
		*httptest.Server
		token string
	}{{p.agent, agentTok}, {p.workspace, workTok}} {
		for _, path := range []string{own, other} {
			resp, body := ask(t, server.Server, "GET", path, server.token, "")
			if resp.StatusCode != 200 || body != "from the service" || resp.Header.Get("Set-Cookie") != "" {
				t.Errorf("%s %q %q", resp.Status, body, resp.Header)
			}
		}
	}
	for i, saw := range p.serviceSaw {
		if want := []string{own, other}[i%2]; saw.Header.Get("Authorization") != "" || saw.Header.Get("Cookie") != "" || saw.URL.RequestURI() != want {
			t.Errorf("the service saw %s with %q", saw.URL, saw.Header)
		}
	}
}

// What was saved of the issue goes to the agent alone, as it comes.
func TestWhatWasSavedComesFromTheService(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, func(http.ResponseWriter, *http.Request) {})
	if resp, body := ask(t, p.agent, "GET", podfile.RestorePath, agentTok, ""); resp.StatusCode != 200 || body != "from the service" {
		t.Errorf("%s %q", resp.Status, body)
	}
	if len(p.serviceSaw) != 1 || p.serviceSaw[0].URL.RequestURI() != podfile.RestorePath || p.serviceSaw[0].Header.Get("Authorization") != "" {
		t.Errorf("the service saw %v", p.serviceSaw)
	}
	// One that the service breaks off does not look whole.
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "half of it")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer service.Close()
	agent := agentOf(t, service, podfile.Model{API: podfile.APIOpenAI, BaseURL: "http://model"})
	req, err := http.NewRequest(http.MethodGet, agent.URL+podfile.RestorePath, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+agentTok)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("half of it looks whole: %q", b)
	}
}

func TestARequestWaitsForAServiceThatIsAway(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "back again") }))
	defer service.Close()
	for name, tt := range map[string]struct {
		away   int64
		status int
		body   string
	}{
		"for a while": {3, 200, "back again"},
		"for good":    {1 << 60, 502, "the service does not answer"},
	} {
		var dials atomic.Int64
		g, err := gate.New(gate.Config{
			File: &podfile.File{Repo: "ann/hello", AgentToken: agentTok, WorkspaceToken: workTok, Model: podfile.Model{API: podfile.APIOpenAI, BaseURL: "http://model"}},
			Service: func(context.Context) (net.Conn, error) {
				if dials.Add(1) <= tt.away {
					return nil, errors.New("nobody there")
				}
				return net.Dial("tcp", service.Listener.Addr().String())
			},
			Policy: keyed, Usage: account(t), Patience: 3 * time.Second, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		agent := httptest.NewServer(g.Handler(gate.Agent))
		resp, body := ask(t, agent, "POST", "/work/ann/hello.git/git-receive-pack", agentTok, "pack")
		agent.Close()
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.body) {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		}
	}
}

// agentOf is the agent's door of a gate in front of a service.
func agentOf(t *testing.T, service *httptest.Server, model podfile.Model) *httptest.Server {
	t.Helper()
	return doorOf(t, gate.Config{
		File:   &podfile.File{Repo: "ann/hello", AgentToken: agentTok, WorkspaceToken: workTok, Model: model},
		Policy: keyed, Usage: account(t),
		Service: func(context.Context) (net.Conn, error) { return net.Dial("tcp", service.Listener.Addr().String()) },
		Log:     slog.New(slog.DiscardHandler),
	})
}

// doorOf is the agent's door of a gate.
func doorOf(t *testing.T, cfg gate.Config) *httptest.Server {
	t.Helper()
	g, err := gate.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	agent := httptest.NewServer(g.Handler(gate.Agent))
	t.Cleanup(agent.Close)
	return agent
}

// post asks as the agent, and leaves the answer to be read.
func post(t *testing.T, url string, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+agentTok)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// An answer that begins before the question has ended gets through, and so does
// the rest of the question.
func TestAnAnswerMayBeginBeforeTheQuestionEnds(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		err := rc.EnableFullDuplex()
		fmt.Fprint(w, "begun; ")
		if err := errors.Join(err, rc.Flush()); err != nil {
			t.Error(err)
		}
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %q %v", b, err)
	}))
	defer service.Close()
	agent := agentOf(t, service, podfile.Model{API: podfile.APIOpenAI, BaseURL: "http://model"})
	in, out := io.Pipe()
	go func() { fmt.Fprint(out, "half ") }()
	resp := post(t, agent.URL+"/work/ann/hello.git/git-upload-pack", in)
	defer resp.Body.Close()
	if _, err := fmt.Fprint(out, "and half"); err != nil {
		t.Error(err)
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != `begun; got "half and half" <nil>` {
		t.Errorf("%q %v", b, err)
	}
}

func TestARedirectOfTheModelIsNotFollowed(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/v1/elsewhere", http.StatusTemporaryRedirect)
	})
	resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat)
	if resp.StatusCode != 502 || len(p.modelSaw) != 1 || !strings.Contains(body, "redirect") {
		t.Errorf("%s %q after %d requests", resp.Status, body, len(p.modelSaw))
	}
}

func TestAFailureIsToldInWordsWithoutTheKey(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no such key: "+r.Header.Get("Authorization"), http.StatusUnauthorized)
	})
	// The provider told the key, and the agent reads the answer.
	resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat)
	if resp.StatusCode != 401 || !strings.Contains(body, "no such key: Bearer [key]") {
		t.Errorf("%s %q", resp.Status, body)
	}
	tr := p.gate.Traffic()
	if tr.LastStatus != 401 || tr.Failures != 1 || !strings.Contains(tr.LastError, "no such key") || strings.Contains(tr.LastError, key) {
		t.Errorf("traffic %+v", tr)
	}
}

func TestAnAnswerComesAsItIsMade(t *testing.T) {
	more := make(chan struct{})
	p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		<-more
		fmt.Fprint(w, "second\n")
	})
	resp := post(t, p.agent.URL+chatRoute, strings.NewReader(goodChat))
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	// Would hang here if the gate kept the first part back.
	if line, err := lines.ReadString('\n'); line != "first\n" || err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	if tr := p.gate.Traffic(); tr.InFlight != 1 {
		t.Errorf("in flight: %+v", tr)
	}
	close(more)
	if line, err := lines.ReadString('\n'); line != "second\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for p.gate.Traffic().InFlight != 0 {
		if time.Now().After(deadline) {
			t.Fatal("the request is in flight for ever")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestTheKeyIsLeftOutHoweverItIsCut(t *testing.T) {
	for cut := range len(key) + 1 {
		p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, _ *http.Request) {
			for _, piece := range []string{"data: sk-" + key[:cut], key[cut:] + "sk-the", "-end\n\n"} {
				fmt.Fprint(w, piece)
				_ = http.NewResponseController(w).Flush()
				time.Sleep(2 * time.Millisecond)
			}
		})
		if _, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat); body != "data: sk-[key]sk-the-end\n\n" {
			t.Errorf("cut at %d: %q", cut, body)
		}
	}
}

func TestAnAgentThatHangsUpIsNoFailureOfTheModel(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", p.agent.URL+chatRoute, strings.NewReader(goodChat))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+agentTok)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	deadline := time.Now().Add(10 * time.Second)
	for p.gate.Traffic().InFlight != 0 {
		if time.Now().After(deadline) {
			t.Fatal("the request is in flight for ever")
		}
		time.Sleep(time.Millisecond)
	}
	if tr := p.gate.Traffic(); tr.LastError != "" {
		t.Errorf("traffic %+v", tr)
	}
}

// A model on the host's loopback is reached through the service's socket.
func TestAModelOfTheHostIsDialledByTheService(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, " ", r.URL.Path)
	}))
	defer plain.Close()
	dials := make(chan string, 10)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		dials <- fmt.Sprint(r.Method, " ", r.URL, " ", r.Header)
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		up, err := net.Dial("tcp", plain.Listener.Addr().String())
		if err != nil {
			return
		}
		defer up.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		go func() { _, _ = io.Copy(up, buf) }()
		_, _ = io.Copy(conn, up)
	}))
	defer service.Close()
	agent := agentOf(t, service, podfile.Model{API: podfile.APIOpenAI, Name: "m", BaseURL: "http://model.of.the.host/v1", ViaService: true})
	for range 2 { // the second time over the same connection
		if resp, body := ask(t, agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 200 || body != "model.of.the.host /v1/chat/completions" {
			t.Errorf("%s %q", resp.Status, body)
		}
	}
	if first := <-dials; !strings.HasPrefix(first, "GET /dial/model ") || strings.Contains(first, key) || strings.Contains(first, agentTok) || len(dials) != 0 {
		t.Errorf("the service saw %s and %d more", first, len(dials))
	}
}

// Whether the model can be reached is found out without a request.
func TestWhetherTheModelIsThere(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, func(http.ResponseWriter, *http.Request) {})
	if err := p.gate.Reach(t.Context()); err != nil || len(p.modelSaw) > 0 {
		t.Errorf("%v, and it saw %d requests", err, len(p.modelSaw))
	}
	// By way of the service, which does not let this one through.
	p.config.File.Model.ViaService = true
	if err := p.gate.Reach(t.Context()); err == nil || !strings.Contains(err.Error(), "connecting to the model at 127.0.0.1:") {
		t.Errorf("by the service: %v", err)
	}
	p.config.File.Model.ViaService = false
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.config.File.Model.BaseURL = "http://" + l.Addr().String() + "/v1"
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	g, err := gate.New(p.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Reach(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("where nobody listens: %v", err)
	}
}
