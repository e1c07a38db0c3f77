package podapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// A Client talks to a pod-api on its unix socket. Its methods are safe for
// concurrent use.
type Client struct {
	http  *http.Client
	proxy http.RoundTripper
}

// NewClient returns a client for the socket at path. It makes no call.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{
		// A pod-api may end at any time, and its socket be made anew.
		http:  &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}},
		proxy: &http.Transport{MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second, DisableCompression: true, DialContext: dial},
	}
}

// Through is a client that asks by way of what wrap makes of c's transports.
func (c *Client) Through(wrap func(http.RoundTripper) http.RoundTripper) *Client {
	return &Client{&http.Client{Transport: wrap(c.http.Transport)}, wrap(c.proxy)}
}

// Transport is the way to the socket, for proxies. It keeps connections for the next
// request: a browser makes many.
func (c *Client) Transport() http.RoundTripper { return c.proxy }

// Summary asks how the agent is.
func (c *Client) Summary(ctx context.Context) (Summary, error) {
	var s Summary
	return s, c.do(ctx, http.MethodGet, "/summary", nil, &s)
}

// GitStatus asks how the agent's clone stands; the answer is JSON (openapi.yaml).
func (c *Client) GitStatus(ctx context.Context) (json.RawMessage, error) {
	var status json.RawMessage
	return status, c.do(ctx, http.MethodGet, "/git/status", nil, &status)
}

// Send gives the agent a message.
func (c *Client) Send(ctx context.Context, text string) error {
	return c.do(ctx, http.MethodPost, "/messages", map[string]string{"text": text}, nil)
}

// Tell is Send, once for each id, however often it is called.
func (c *Client) Tell(ctx context.Context, id, text string) error {
	return c.do(ctx, http.MethodPost, "/messages", map[string]string{"id": id, "text": text}, nil)
}

// Stop ends the agent's turn.
func (c *Client) Stop(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/stop", nil, nil)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://pod"+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking the pod-api: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return fmt.Errorf("reading the pod-api's answer: %w", err)
	}
	if resp.StatusCode > 299 {
		return fmt.Errorf("the pod-api answered %s: %s", resp.Status, strings.TrimSpace(Clip(string(b), 500)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}
