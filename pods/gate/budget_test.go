package gate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/gate"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

const answered = `{"usage":{"prompt_tokens":100,"completion_tokens":10}}`

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

// What a request used is in the account, however it ends.
func TestWhatARequestUses(t *testing.T) {
	const reserved = 43 // of goodChat's 84 bytes
	for name, tt := range map[string]struct {
		model http.HandlerFunc
		body  string
		want  usage.Tokens
	}{
		"what the answer says":       {says(answered), goodChat, usage.Tokens{Input: 100, Output: 10}},
		"an answer that is silent":   {says(strings.Repeat("x", 2000)), goodChat, usage.Tokens{Input: reserved, Output: 1000}},
		"a long answer that is":      {says(strings.Repeat("x", 100_000)), goodChat, usage.Tokens{Input: reserved, Output: 16_384}},
		"a request that is refused":  {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, answered, 400) }, goodChat, usage.Tokens{}},
		"a model that is busy":       {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "later", http.StatusTooManyRequests) }, goodChat, usage.Tokens{}},
		"an answer that is cut off":  {cutOff("data: " + strings.Repeat("x", 394)), goodChat, usage.Tokens{Input: reserved, Output: 200}},
		"one that is cut off at all": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, goodChat, usage.Tokens{Input: reserved}},
	} {
		p := newPlace(t, podfile.APIOpenAI, tt.model)
		p.policy.Prices = usage.Prices{Input: 2, Output: 10}
		req, err := http.NewRequest("POST", p.agent.URL+chatRoute, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+agentTok)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body) // it may be cut off
			resp.Body.Close()
		}
		waitIdle(t, p)
		used := p.gate.Traffic().Used
		if used.Tokens != tt.want || used.Cost != p.policy.Prices.Of(tt.want) || used.Requests != 1 {
			t.Errorf("%s: %+v, want %+v", name, used, tt.want)
		}
	}
}

// A model that can't be reached as it should has got nothing, and costs nothing.
func TestAModelThatIsNotReachedCostsNothing(t *testing.T) {
	untrusted := httptest.NewTLSServer(says(answered))
	defer untrusted.Close()
	plain := httptest.NewServer(says(answered))
	defer plain.Close()
	gone := httptest.NewServer(says(answered))
	gone.Close()
	for url, why := range map[string]string{
		untrusted.URL: "certificate signed by unknown authority",
		strings.Replace(plain.URL, "http:", "https:", 1): "server gave HTTP response to HTTPS client",
		gone.URL: "connection refused",
	} {
		p := newPlace(t, podfile.APIOpenAI, says(answered))
		p.config.Usage = account(t)
		file := *p.config.File
		file.Model.BaseURL = url + "/v1"
		p.config.File = &file
		g, err := gate.New(p.config)
		if err != nil {
			t.Fatal(err)
		}
		agent := httptest.NewServer(g.Handler(gate.Agent))
		resp, body := ask(t, agent, "POST", chatRoute, agentTok, goodChat)
		agent.Close()
		_, host, _ := strings.Cut(url, "://")
		tr := g.Traffic()
		if resp.StatusCode != 502 || !strings.Contains(body, "devaipod: the model at "+host+" does not answer: ") || !strings.Contains(body, why) || !strings.Contains(tr.LastError, why) {
			t.Errorf("%s: %s %q, %q", url, resp.Status, body, tr.LastError)
		}
		if tr.Used.Tokens.Sum() != 0 || tr.Failures != 1 {
			t.Errorf("%s: %+v", url, tr)
		}
	}
}

func cutOff(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, text)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

func waitIdle(t *testing.T, p *place) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); p.gate.Traffic().InFlight != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the request is in flight for ever")
		}
	}
}

func TestABudgetThatIsUsedUp(t *testing.T) {
	asked := 0
	p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, _ *http.Request) { asked++; fmt.Fprint(w, answered) })
	p.policy.Budget.Tokens = 200 + 16_384
	for range 2 {
		if resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 200 {
			t.Fatal(resp.Status, body)
		}
	}
	resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat)
	if resp.StatusCode != 402 || !strings.Contains(body, "220 of 16584 tokens are used") || !strings.Contains(body, "/budget AMOUNT") || asked != 2 {
		t.Errorf("%s %q after %d requests", resp.Status, body, asked)
	}
	tr := p.gate.Traffic()
	if tr.Spent == "" || tr.Used.Tokens.Sum() != 220 || tr.InFlight != 0 || tr.LastStatus != 200 {
		t.Errorf("%+v", tr)
	}
	// What costs nothing still goes.
	if resp, body := ask(t, p.agent, "GET", "/model/v1/models", agentTok, ""); resp.StatusCode != 200 {
		t.Error(resp.Status, body)
	}
	// Somebody raises it.
	p.policy.Budget.Tokens *= 2
	if tr := p.gate.Traffic(); tr.Spent != "" {
		t.Errorf("%+v", tr)
	}
	if resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 200 {
		t.Error(resp.Status, body)
	}
}

// Without an account, or without a policy, nothing is sent.
func TestAGateThatCantCountIsClosed(t *testing.T) {
	for name, tt := range map[string]struct {
		policy func() (podfile.Policy, error)
		usage  *usage.Journal
	}{
		"no policy":  {func() (podfile.Policy, error) { return podfile.Policy{}, errors.New("it is torn") }, account(t)},
		"no account": {keyed, usage.Broken(errors.New("it is torn"))},
	} {
		p := newPlace(t, podfile.APIOpenAI, says(answered))
		agent := p.another(t, tt.policy, tt.usage)
		if resp, body := ask(t, agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 503 || !strings.Contains(body, "it is torn") {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		}
		if len(p.modelSaw) != 0 {
			t.Errorf("%s: the model was asked", name)
		}
	}
}

// One that has too much to do is asked again, and the agent sees only the end.
func TestABusyModelIsAskedAgain(t *testing.T) {
	for _, status := range []int{429, 503, 529} {
		asked := 0
		p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, _ *http.Request) {
			if asked++; asked < 3 {
				w.WriteHeader(status)
			}
			fmt.Fprint(w, answered)
		})
		if resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 200 || body != answered || asked != 3 {
			t.Errorf("%d: %s %q after %d requests", status, resp.Status, body, asked)
		}
		if tr := p.gate.Traffic(); tr.Failures != 0 || tr.Used.Tokens.Sum() != 110 {
			t.Errorf("%+v", tr)
		}
	}
	for name, tt := range map[string]struct{ header, want string }{
		"for good":                  {"", "429 after 4"},
		"for longer than one waits": {"3600", "429 after 1"},
	} {
		asked := 0
		p := newPlace(t, podfile.APIOpenAI, func(w http.ResponseWriter, _ *http.Request) {
			asked++
			if tt.header != "" {
				w.Header().Set("Retry-After", tt.header)
			}
			w.WriteHeader(429)
		})
		resp, _ := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat)
		if got := fmt.Sprintf("%d after %d", resp.StatusCode, asked); got != tt.want || resp.Header.Get("Retry-After") != tt.header {
			t.Errorf("%s: %s, %q", name, got, resp.Header)
		}
	}
}

func TestRequestsThatComeTooFastWait(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, says(answered))
	p.policy.Rate = 4 // one at once, the next in 15 seconds
	if resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 200 {
		t.Fatal(resp.Status, body)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", p.agent.URL+chatRoute, strings.NewReader(goodChat))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+agentTok)
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("the second is answered with %s", resp.Status)
	}
	if len(p.modelSaw) != 1 {
		t.Errorf("the model was asked %d times", len(p.modelSaw))
	}
}

func TestGemini(t *testing.T) {
	p := newPlace(t, podfile.APIGemini, says("data: {\"candidates\":[{\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":10,\"candidatesTokenCount\":6}}\n\n"))
	post := func(path string) int {
		req, err := http.NewRequest("POST", p.agent.URL+path, strings.NewReader(`{"contents":[]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Goog-Api-Key", agentTok)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if status := post("/model/v1/models/m:streamGenerateContent?alt=sse&key=stolen"); status != 200 {
		t.Fatal(status)
	}
	saw := p.modelSaw[0]
	if saw.URL.String() != "/v1/models/m:streamGenerateContent?alt=sse" || saw.Header.Get("X-Goog-Api-Key") != key || saw.Header.Get("Authorization") != "" {
		t.Errorf("the model saw %s with %q", saw.URL, saw.Header)
	}
	for _, path := range []string{"/model/v1/models/dear:generateContent", "/model/v1/models/m:embedContent", "/model/v1/models/m%2F..%2Fdear:generateContent", "/model/v1/cachedContents"} {
		if status := post(path); status < 400 {
			t.Errorf("%s: %d", path, status)
		}
	}
	waitIdle(t, p)
	if used := p.gate.Traffic().Used; used.Tokens != (usage.Tokens{Input: 10, Output: 6}) {
		t.Errorf("%+v", used)
	}
}

// Every piece of Gemini's says what was used up to there: only the last one is
// believed.
func TestAGeminiStreamThatIsCutOff(t *testing.T) {
	p := newPlace(t, podfile.APIGemini, cutOff("data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\""+strings.Repeat("x", 1000)+"\"}]}}],\"usageMetadata\":{\"promptTokenCount\":10,\"candidatesTokenCount\":6}}\n\n"))
	req, err := http.NewRequest("POST", p.agent.URL+"/model/v1/models/m:streamGenerateContent?alt=sse", strings.NewReader(`{"contents":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Goog-Api-Key", agentTok)
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body) // it is cut off
		resp.Body.Close()
	}
	waitIdle(t, p)
	if used := p.gate.Traffic().Used; used.Tokens.Input != 10 || used.Tokens.Output < 500 || used.Tokens.Output > 700 {
		t.Errorf("%+v, want two bytes for a token of what came", used)
	}
}

func TestWhatTheProviderWouldRunDoesNotReachIt(t *testing.T) {
	var mu sync.Mutex
	var got []string
	p := newPlace(t, podfile.APIOpenAI, func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprint(string(b), err))
	})
	const body = `{"model":"m","tools":[{"type":"web_search"}]}`
	for _, allowed := range [][]string{nil, {"web_search"}} {
		p.policy.ProviderTools = allowed
		if resp, text := ask(t, p.agent, "POST", chatRoute, agentTok, body); resp.StatusCode != 200 {
			t.Error(resp.Status, text)
		}
	}
	if fmt.Sprint(got) != `[{"model":"m"}<nil> `+body+`<nil>]` {
		t.Errorf("%q", got)
	}
}

// another is a door to a gate of p's with other rules.
func (p *place) another(t *testing.T, policy func() (podfile.Policy, error), account *usage.Journal) *httptest.Server {
	t.Helper()
	cfg := p.config
	cfg.Policy, cfg.Usage = policy, account
	return doorOf(t, cfg)
}
