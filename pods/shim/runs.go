package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/podapi/command/wire"
)

// What stands in a command for its message. Without one it is on standard input.
const (
	promptText = "{prompt}"
	promptFile = "{prompt_file}"
)

// runs starts a plain program for each message and keeps how the last one did.
type runs struct {
	c *Config

	mu   sync.Mutex
	now  wire.Run // without its output
	tail []byte   // the newest of it
	stop func()   // ends what runs
	done sync.WaitGroup
}

// serveRuns answers on l until ctx ends.
func (c *Config) serveRuns(ctx context.Context, l net.Listener) (exit int, err error) {
	r := &runs{c: c, stop: func() {}}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /run/{id}", r.put)
	mux.HandleFunc("GET /run", r.get)
	mux.HandleFunc("DELETE /run", r.remove)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case <-ctx.Done():
		exit = 128 + int(syscall.SIGTERM)
		err = srv.Close()
	case err = <-served:
		exit = 1
	}
	r.mu.Lock()
	r.stop()
	r.mu.Unlock()
	r.done.Wait()
	return exit, err
}

// put starts a run, unless it is there already: an answer that was lost makes no
// second one.
func (r *runs) put(w http.ResponseWriter, req *http.Request) {
	id := req.PathValue("id")
	text, err := io.ReadAll(http.MaxBytesReader(w, req.Body, wire.MaxMessage))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.now.ID == id:
	case r.now.Running:
		http.Error(w, "another one runs", http.StatusConflict)
		return
	default:
		r.begin(id, text)
	}
	w.WriteHeader(http.StatusNoContent)
}

// begin starts the program. What goes wrong there is how the run ended.
func (r *runs) begin(id string, text []byte) {
	r.now, r.tail = wire.Run{ID: id}, nil
	if err := r.launch(text); err != nil {
		if errors.Is(err, syscall.E2BIG) {
			err = fmt.Errorf("%w (a long message is no argument: use %s in place of %s)", err, promptFile, promptText)
		}
		r.now.Error = err.Error()
		r.c.Log.Error("the agent's program", "err", err)
	}
}

func (r *runs) launch(text []byte) error {
	file := filepath.Join(r.c.stateDir(), "prompt")
	if err := os.MkdirAll(r.c.stateDir(), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	args, placed := make([]string, len(r.c.Command)), false
	for i, arg := range r.c.Command {
		placed = placed || strings.Contains(arg, promptText) || strings.Contains(arg, promptFile)
		args[i] = strings.NewReplacer(promptFile, file, promptText, string(text)).Replace(arg)
	}
	cmd := r.c.program(args)
	if !placed {
		in, err := os.Open(file)
		if err != nil {
			return err
		}
		defer in.Close()
		cmd.Stdin = in
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer write.Close()
	cmd.Stdout, cmd.Stderr = write, write
	exited, err := r.c.spawn(cmd)
	if err != nil {
		return errors.Join(err, read.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.now.Running, r.stop = true, cancel
	r.done.Go(func() { r.attend(ctx, cmd.Process.Pid, exited, read) })
	return nil
}

// attend waits for a run's end, and gathers what it says.
func (r *runs) attend(ctx context.Context, pid int, exited <-chan int, read *os.File) {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.MultiWriter(os.Stdout, r), read) // it ends with the last who can write, or below
	}()
	var code int
	select {
	case code = <-exited:
		r.c.endTree(pid) // what it has started ends with it
	case <-ctx.Done():
		r.c.end(pid, exited)
		code = 128 + int(syscall.SIGTERM)
	}
	select {
	case <-drained:
	case <-time.After(drainWithin):
	}
	_ = read.Close()
	<-drained
	r.c.Log.Info("agent ended", "code", code)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now.Running, r.now.Code, r.stop = false, code, func() {}
}

// Write keeps the newest of what a program puts out.
func (r *runs) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now.Total += int64(len(p))
	r.tail = append(r.tail, p...)
	if over := len(r.tail) - wire.Kept; over > wire.Kept/4 {
		r.tail = append(r.tail[:0], r.tail[over:]...)
	}
	return len(p), nil
}

func (r *runs) get(w http.ResponseWriter, req *http.Request) {
	after, err := strconv.ParseInt(req.URL.Query().Get("after"), 10, 64)
	if err != nil {
		http.Error(w, "after: want a number of bytes", http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	now := r.now
	from := min(max(after, now.Total-int64(len(r.tail))), now.Total)
	rest := r.tail[int64(len(r.tail))-(now.Total-from):]
	now.Output = append([]byte(nil), rest[:min(len(rest), wire.MaxOutput)]...)
	r.mu.Unlock()
	now.Next = from + int64(len(now.Output))
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(now) // who asked has gone
}

func (r *runs) remove(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	r.stop()
	r.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}
