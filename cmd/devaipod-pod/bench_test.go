package main_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// BenchmarkControl measures the memory of a pod's control container, resident, in
// MB: when nothing happens, and the most that there was while an agent asked its
// model with 300 KB each time, as in a long session.
func BenchmarkControl(b *testing.B) {
	l := newLone(b, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for range 200 {
			fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n")
		}
		fmt.Fprint(w, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":75000,\"completion_tokens\":200}}\n\n")
	})
	l.start()
	time.Sleep(time.Second)
	idle := l.memory("VmRSS:")
	long := `{"model":"m","messages":[` + strings.Repeat(`{"role":"user","content":"`+strings.Repeat("some text. ", 100)+`"},`, 270) + `{"role":"user","content":"go on"}]}`
	for b.Loop() {
		if status, answer, err := l.ask("POST", "/model/v1/chat/completions", long); err != nil || status != http.StatusOK {
			b.Fatal(status, answer, err)
		}
	}
	b.ReportMetric(idle, "MB-idle")
	b.ReportMetric(l.memory("VmHWM:"), "MB-most")
}

// restingAgent stands for an opencode whose turn is over (its API as 1.18.33 has it).
func restingAgent(w http.ResponseWriter, r *http.Request) {
	text, ok := map[string]string{
		"/session": `[{"id":"ses_1","title":"k"}]`, "/session/status": `{}`, "/question": `[]`, "/permission": `[]`,
		"/session/ses_1/message": `[{"info":{"id":"msg_1","role":"assistant","finish":"stop","time":{"completed":1}},"parts":[{"id":"prt_1","type":"text","text":"It is done."}]}]`,
	}[r.URL.Path]
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/event" {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush() // it may be gone
		<-r.Context().Done()
	} else if !ok {
		text = `{"healthy":true}`
	}
	fmt.Fprint(w, text)
}

// cpu is what control has used of processors, by proc(5).
func (l *lone) cpu() time.Duration {
	l.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.cmd.Process.Pid))
	l.must(err)
	field := strings.Fields(string(text[strings.LastIndexByte(string(text), ')'):]))
	ticks := 0
	for _, f := range field[12:14] { // utime, stime
		n, err := strconv.Atoi(f)
		l.must(err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ
}

// BenchmarkControlAtRest looks for a minute at a pod's control container when nothing
// happens: its processor's time, and its memory (MB, resident, and of that
// what is its own: the program's pages are one for all pods) when its journal is empty
// and when it is full, as after a very long session.
func BenchmarkControlAtRest(b *testing.B) {
	l := newLone(b, answers)
	agent, err := net.Listen("unix", l.path("a/"+podfile.AgentSocket))
	l.must(err)
	srv := &http.Server{Handler: http.HandlerFunc(restingAgent)}
	defer srv.Close()   //nolint:errcheck // the benchmark is over
	go srv.Serve(agent) //nolint:errcheck // the same
	api := podapi.NewClient(l.path("run/" + podfile.ControlSocket))
	rest := func() {
		l.start()
		for sum := (podapi.Summary{}); sum.State != podapi.Done; time.Sleep(50 * time.Millisecond) {
			sum, err = api.Summary(b.Context())
			l.must(err)
		}
		time.Sleep(5 * time.Second)
	}
	for b.Loop() {
		rest()
		before := l.cpu()
		time.Sleep(time.Minute)
		b.ReportMetric(float64((l.cpu() - before).Milliseconds()), "cpu-ms/min")
		b.ReportMetric(l.memory("VmRSS:"), "MB-empty")
		b.ReportMetric(l.memory("RssAnon:"), "MB-own-empty")
		l.kill()
		j := podapi.OpenJournal(l.path("usage"), slog.New(slog.DiscardHandler))
		for i := range 60_000 {
			j.Once(fmt.Sprintf("prt_%026d completed", i), podapi.EventTool, strings.Repeat("some output ", 60))
		}
		rest()
		b.ReportMetric(l.memory("VmRSS:"), "MB-full")
		b.ReportMetric(l.memory("RssAnon:"), "MB-own-full")
		l.kill()
	}
}
