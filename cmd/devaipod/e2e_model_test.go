package main_test

import (
	"net"
	"net/http"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/scriptedmodel"
)

const modelName = scriptedmodel.Name

// serveModel runs the scripted model in this process, on loopback.
func (s *suite) serveModel() (url string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s.script = scriptedmodel.New(modelKey, scriptedmodel.Tasks())
	s.model = &http.Server{Handler: s.script, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.model.Serve(l) }() // ends by Close
	return "http://" + l.Addr().String() + "/v1", nil
}

// release lets the model that waits for this issue go on in the scenario slow,
// until the agent has pushed.
func (c *call) release() error {
	c.script.Release(c.env("NONCE"))
	return c.until("a push", func() (bool, error) {
		inner := &call{suite: c.suite, ts: c.ts}
		err := inner.refs()
		return strings.Contains(inner.out.String(), "refs/heads/agent/"+c.env("ISSUE")+"-"), err
	})
}

// letgo lets it go on until the agent has tried to push.
func (c *call) letgo() error {
	c.script.Release(c.env("NONCE"))
	return c.until("git push", func() (bool, error) {
		out, err := c.again([]string{"devaipod", "logs", c.env("KEY")})
		return strings.Contains(out, "git push"), err
	})
}
