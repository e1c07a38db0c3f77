package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/scriptedmodel"
)

const (
	scriptedName = scriptedmodel.Name
	// scriptedKey is no secret: the scripted model listens on loopback and
	// knows nothing. It shows that a key goes the way of real ones.
	scriptedKey = "sk-demo-scripted-model"
)

const issueTitle = "Write down the proof"

// serveModel is `demo model ADDRESS`: the scripted model, until it is ended.
func serveModel(ctx context.Context, args []string, stdout, _ io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: demo model ADDRESS")
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: scriptedmodel.New(scriptedKey, scriptedmodel.Tasks()), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		_ = srv.Close() // what it was answering ends with it
	}()
	fmt.Fprintf(stdout, "the scripted model listens on http://%s\n", l.Addr())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// startModel runs the scripted model in the background, in the demo's world,
// by whose environment `down` finds it. It outlives this command, as the stack
// does.
func (d *demo) startModel(ctx context.Context) error {
	if d.modelAnswers(ctx) {
		return nil
	}
	d.say("Starting the scripted model at %s (it stands in for a real one)", d.model.url)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(filepath.Join(d.dir, "model.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, "model", d.saved.Model)
	cmd.Env, cmd.Dir = d.world.Environ(), d.dir
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the scripted model: %w", err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "model.pid"), fmt.Appendln(nil, cmd.Process.Pid), 0o600); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for !d.modelAnswers(ctx) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-exited:
			return fmt.Errorf("the scripted model ended at once (%w): see %s", err, logFile.Name())
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

func (d *demo) modelAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.model.url+"/models", nil)
	if err != nil {
		return false
	}
	req.Header.Set("Authorization", "Bearer "+scriptedKey)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
