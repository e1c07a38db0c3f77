package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A thing of podman's, as it lists them: a container has Names and a State, a pod a Status.
type thing struct {
	Name, State, Status string
	Names               []string
	Labels              map[string]string
}

// pods lists all that carries the labels of the issue.
func (c *call) pods() error {
	for _, kind := range []struct {
		word, path string
		args       []string
	}{
		{"container", "containers/json?all=true", []string{"ps", "--all"}},
		{"pod", "pods/json", []string{"pod", "ps"}},
		{"volume", "volumes/json", []string{"volume", "ls"}},
		{"network", "networks/json", []string{"network", "ls"}},
	} {
		text, err := c.askPodman(kind.path)
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) { // the service is down
			var out string
			out, err = c.World.Podman(c.ctx, append(kind.args, "--format", "json")...)
			text = []byte(out)
		}
		var all []thing
		if err == nil {
			err = json.Unmarshal(text, &all)
		}
		if err != nil {
			return fmt.Errorf("listing %ss: %w", kind.word, err)
		}
		for _, t := range all {
			if t.Labels["devaipod.repo"] == c.env("REPO") && t.Labels["devaipod.issue"] == c.env("ISSUE") {
				c.printf("%s\n", strings.TrimSpace(strings.Join(append([]string{kind.word}, t.words()...), " ")))
			}
		}
	}
	c.printf("(end)\n")
	return nil
}

// words are its name and its state, that of a container as podman ps has it.
func (t thing) words() []string {
	switch {
	case len(t.Names) == 0:
		return []string{t.Name, t.Status}
	case t.State == "running":
		return []string{t.Names[0], "Up"}
	case t.State == "configured":
		return []string{t.Names[0], "Created"}
	}
	return []string{t.Names[0], strings.ToUpper(t.State[:1]) + t.State[1:]}
}

// askPodman asks podman's service, as scripts that wait do again and again: the command costs a
// tenth of a second of a processor each time.
func (c *call) askPodman(path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.StateDir, "podman.sock"))
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podman/v4.0.0/libpod/"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("podman answered %s: %s", resp.Status, text)
	}
	return text, err
}
