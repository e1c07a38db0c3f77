package shim_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi/command/wire"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// driven starts a shim with a driver, and waits until its socket is there.
func driven(t *testing.T, driver string, command ...string) (p *place, socket string, done <-chan outcome, cancel context.CancelFunc) {
	t.Helper()
	p = newPlace(t)
	p.commit("main", "a")
	p.openGate()
	p.cfg.Driver = driver
	ctx, cancel := context.WithCancel(t.Context())
	done = p.start(ctx, command...)
	socket = filepath.Join(p.cfg.SocketDir, podfile.AgentSocket)
	eventually(t, "the agent's socket is listened on", func() bool { return listened(t, socket) })
	t.Cleanup(cancel)
	return p, socket, done, cancel
}

// listened tells whether somebody listens on a socket, which is there a moment before:
// by the flag __SO_ACCEPTCON in /proc/net/unix (proc(5)), since a connection would be
// one that counts.
func listened(t *testing.T, socket string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 8 && f[7] == socket && f[3] == "00010000" {
			return true
		}
	}
	return false
}

func ends(t *testing.T, done <-chan outcome, code int) {
	t.Helper()
	select {
	case o := <-done:
		if o.code != code {
			t.Errorf("%+v, want %d", o, code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the shim does not end")
	}
}

// A line is a connection to the program's standard streams.
type line struct {
	net.Conn
	*bufio.Scanner
}

func (l *line) next(t *testing.T) string {
	t.Helper()
	if err := l.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if !l.Scan() {
		return fmt.Sprint("the end: ", l.Err())
	}
	return l.Text()
}

func connect(t *testing.T, socket string) *line {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &line{c, bufio.NewScanner(c)}
}

func TestEachConnectionGetsTheProgramAnewAndTheNewestHasIt(t *testing.T) {
	// It is deaf to SIGTERM and has a child that outlives it.
	p, socket, done, cancel := driven(t, podfile.DriverACP, "sh", "-c", `trap '' TERM; sleep 1000 </dev/null >/dev/null 2>&1 & echo $$ $!; while read -r l; do test "$l" = end && exit 3; echo "got $l"; done; exec sleep 1000`)
	ps := func(text string) []int {
		var a, b int
		if _, err := fmt.Sscan(text, &a, &b); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		return []int{a, b}
	}
	first := connect(t, socket)
	pids := ps(first.next(t))
	fmt.Fprintln(first, "one")
	if got := first.next(t); got != "got one" {
		t.Errorf("%q", got)
	}
	second := connect(t, socket)
	for _, pid := range ps(second.next(t)) {
		if gone(pid) {
			t.Error("the second program does not run")
		}
	}
	for _, pid := range pids {
		eventually(t, "the first program is gone", func() bool { return gone(pid) })
	}
	if got := first.next(t); !strings.HasPrefix(got, "the end") {
		t.Errorf("the first connection goes on: %q", got)
	}
	// One that ends by itself ends its connection, and the next finds another.
	fmt.Fprintln(second, "end")
	if got := second.next(t); got != "the end: <nil>" {
		t.Errorf("%q", got)
	}
	third := connect(t, socket)
	pids = ps(third.next(t))
	// Who goes away, even in the middle of a line, takes the program along.
	fmt.Fprint(third, "half")
	_ = third.Close()
	for _, pid := range pids {
		eventually(t, "the third program is gone", func() bool { return gone(pid) })
	}
	connect(t, socket).next(t)
	cancel()
	ends(t, done, 143)
	_ = p
}

func TestAProgramThatNeitherReadsNorStopsHoldsNobodyUp(t *testing.T) {
	_, socket, done, cancel := driven(t, podfile.DriverACP, "sh", "-c", `echo up; exec yes`)
	deaf := connect(t, socket)
	deaf.next(t)
	go func() { _, _ = io.Copy(deaf.Conn, strings.NewReader(strings.Repeat("x", 4<<20))) }() // it does not read, and nobody reads it
	if got := connect(t, socket).next(t); got != "up" {
		t.Errorf("%q", got)
	}
	cancel()
	ends(t, done, 143)
}

func TestAProgramThatIsNotThereEndsTheContainer(t *testing.T) {
	_, socket, done, _ := driven(t, podfile.DriverACP, "/no/such/agent")
	connect(t, socket)
	ends(t, done, 1)
}

// A runner asks the shim for runs.
type runner struct {
	t    *testing.T
	http http.Client
}

func newRunner(t *testing.T, socket string) *runner {
	return &runner{t: t, http: http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}}
}

func (r *runner) do(method, path, body string) (int, []byte) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://shim"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, b
}

func (r *runner) put(id, text string) {
	r.t.Helper()
	if status, b := r.do("PUT", "/run/"+id, text); status != http.StatusNoContent {
		r.t.Fatalf("%d %s", status, b)
	}
}

func (r *runner) get(after int64) (run wire.Run) {
	r.t.Helper()
	_, b := r.do("GET", fmt.Sprint("/run?after=", after), "")
	if err := json.Unmarshal(b, &run); err != nil {
		r.t.Fatalf("%v: %s", err, b)
	}
	return run
}

func (r *runner) ended(id string) wire.Run {
	r.t.Helper()
	var run wire.Run
	eventually(r.t, id+" has ended", func() bool { run = r.get(run.Total); return run.ID == id && !run.Running })
	return r.get(0)
}

func TestAPlainProgramRunsOnceForAMessage(t *testing.T) {
	_, socket, done, cancel := driven(t, podfile.DriverCommand, "sh", "-c", `read -r m; echo "asked: $m"; echo err >&2; case $m in fail) exit 7;; hang) sleep 1000 & trap '' TERM; sleep 1000;; esac`)
	r := newRunner(t, socket)
	if run := r.get(0); run.ID != "" || run.Running {
		t.Errorf("before the first: %+v", run)
	}
	r.put("1", "hello\n")
	if run := r.ended("1"); run.Code != 0 || string(run.Output) != "asked: hello\nerr\n" || run.Next != run.Total {
		t.Errorf("%+v: %s", run, run.Output)
	}
	r.put("1", "again") // the answer was lost, say
	if run := r.get(6); string(run.Output) != " hello\nerr\n" {
		t.Errorf("it ran twice: %s", run.Output)
	}
	r.put("2", "fail\n")
	if run := r.ended("2"); run.Code != 7 {
		t.Errorf("%+v", run)
	}
	r.put("3", "hang\n")
	if status, _ := r.do("PUT", "/run/4", "x"); status != http.StatusConflict {
		t.Errorf("two at a time: %d", status)
	}
	r.do("DELETE", "/run", "")
	if run := r.ended("3"); run.Code != 143 {
		t.Errorf("%+v", run)
	}
	r.put("5", "hang\n")
	cancel()
	ends(t, done, 143)
}

func TestWhereTheMessageGoes(t *testing.T) {
	for name, tt := range map[string]struct {
		command []string
		message string
		want    string
	}{
		"into an argument":  {[]string{"echo", "-m={prompt}."}, "a $HOME 'b'", "-m=a $HOME 'b'.\n"},
		"into a file":       {[]string{"cat", "{prompt_file}"}, "text", "text"},
		"a name in it":      {[]string{"echo", "{prompt}"}, "{prompt_file} {prompt}", "{prompt_file} {prompt}\n"},
		"to standard input": {[]string{"cat"}, "text", "text"},
		"one too long":      {[]string{"true", "{prompt}"}, strings.Repeat("x", 200_000), "use {prompt_file}"},
		"no such program":   {[]string{"/no/such"}, "x", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, socket, _, _ := driven(t, podfile.DriverCommand, tt.command...)
			r := newRunner(t, socket)
			r.put("1", tt.message)
			run := r.ended("1")
			if got := string(run.Output); got != tt.want && (run.Error == "" || !strings.Contains(run.Error, tt.want)) {
				t.Errorf("%q, %s; want %q", got, run.Error, tt.want)
			}
		})
	}
}

func TestOfAFloodTheNewestIsKept(t *testing.T) {
	_, socket, _, _ := driven(t, podfile.DriverCommand, "sh", "-c", `yes | head -c 20000000; echo the end`)
	r := newRunner(t, socket)
	r.put("1", "")
	run := r.ended("1")
	if run.Total != 20_000_008 || len(run.Output) > wire.MaxOutput || run.Total-run.Next > wire.Kept*5/4 {
		t.Errorf("%d bytes of %d, the next at %d", len(run.Output), run.Total, run.Next)
	}
	if run = r.get(run.Total - 8); string(run.Output) != "the end\n" {
		t.Errorf("%q", run.Output)
	}
}
