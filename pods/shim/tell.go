package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// tellWithin is how long the gate may take to hear of the setup.
const tellWithin = 5 * time.Second

// tell lets who enters, and the gate, know where the setup is. Neither is needed to
// go on.
func (c *Config) tell(ctx context.Context, s podfile.SetupState) {
	s.Error = clip(s.Error, podfile.MaxSetupState/4)
	c.state.Stage, c.state.Ended, c.state.Error = s.Stage, s.Ended, s.Error
	if err := c.keepState(); err != nil {
		c.Log.Warn("keeping where the setup is", "err", err)
	}
	if err := c.post(ctx, s); err != nil && ctx.Err() == nil {
		c.Log.Warn("the gate was not told where the setup is", "err", err)
	}
}

// remindEvery is how often the gate hears again of what went wrong.
const remindEvery = 5 * time.Second

// remind tells the gate again of a setup that has ended, if it went wrong, until ctx
// ends.
func (c *Config) remind(ctx context.Context) {
	s := podfile.SetupState{Stage: c.state.Stage, Error: c.state.Error, Ended: true}
	every := c.Remind
	if every <= 0 {
		every = remindEvery
	}
	for s.Error != "" {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
		if err := c.post(ctx, s); err != nil && ctx.Err() == nil {
			c.Log.Debug("the gate was not reminded of how the setup ended", "err", err)
		}
	}
}

func (c *Config) post(ctx context.Context, s podfile.SetupState) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tellWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.GateAddr+podfile.SetupPath, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: new(net.Dialer).DialContext}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 500))
	if err == nil && resp.StatusCode != http.StatusNoContent {
		err = fmt.Errorf("it answers %s: %s", resp.Status, bytes.TrimSpace(said))
	}
	return err
}
