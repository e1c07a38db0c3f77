package main_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
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
