package forge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	callTimeout = 30 * time.Second
	maxAnswer   = 64 << 20 // bytes of one answer
	pageSize    = 50       // the forge's default maximum
	maxPages    = 400      // 20,000 entries; more is an error, never a silent cut
)

// Errors that callers decide on; match with errors.Is.
var (
	ErrNotFound  = errors.New("not found")
	ErrForbidden = errors.New("not allowed")
	ErrConflict  = errors.New("there already")
	ErrInvalid   = errors.New("not accepted")
)

// An Error is an answer of the forge that is not a success.
type Error struct {
	Method, Path string
	Status       int
	Message      string // the forge's own words, bounded
}

func (e *Error) Error() string {
	return fmt.Sprintf("the forge answered %d to %s %s: %s", e.Status, e.Method, e.Path, e.Message)
}

// Is matches the sentinel errors by status.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Status == http.StatusNotFound
	case ErrForbidden:
		return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
	case ErrConflict:
		return e.Status == http.StatusConflict
	case ErrInvalid:
		return e.Status == http.StatusUnprocessableEntity
	}
	return false
}

// A Repo names a repository on the forge.
type Repo struct{ Owner, Name string }

// String is "owner/name".
func (r Repo) String() string { return r.Owner + "/" + r.Name }

func (r Repo) path(format string, a ...any) string {
	return "/repos/" + url.PathEscape(r.Owner) + "/" + url.PathEscape(r.Name) + fmt.Sprintf(format, a...)
}

var repoPart = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,100}$`)

// ParseRepo reads "owner/name" and refuses what no forge would take.
func ParseRepo(s string) (Repo, error) {
	owner, name, ok := strings.Cut(s, "/")
	for _, part := range []string{owner, name} {
		if !ok || !repoPart.MatchString(part) || strings.Trim(part, ".") == "" || strings.HasSuffix(part, ".git") {
			return Repo{}, fmt.Errorf("%.100q names no repository: want owner/name", s)
		}
	}
	return Repo{owner, name}, nil
}

// Config is what a [Client] is made from.
type Config struct {
	URL      string // of the forge, with its sub-path if it has one
	Token    string // the service account's, or a person's
	BotToken string
	BotUser  string // login names
	// ServiceUser is Token's account.
	ServiceUser string
	// Transport carries the calls; nil for one of its own.
	Transport http.RoundTripper
	// Fault, when not nil, is called with a name before each call that changes
	// something; tests end the process there.
	Fault func(point string)
	Log   *slog.Logger
}

// A Client talks to one forge. Its methods are safe for concurrent use.
type Client struct {
	cfg  Config
	base string
	http *http.Client

	is flavour
}

// New checks cfg and returns a client. It makes no call.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
		return nil, fmt.Errorf("forge URL %q: want http://HOST or https://HOST", cfg.URL)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Transport == nil {
		cfg.Transport = &http.Transport{MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute}
	}
	return &Client{cfg: cfg, base: strings.TrimRight(cfg.URL, "/"), http: &http.Client{
		// Never carry a token to where an answer points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     cfg.Transport,
	}}, nil
}

// A call is one request; the zero identity is the service's.
type call struct {
	method, path string
	query        url.Values
	body         any
	bot          bool
	sudo         string        // act as this account: site admins only
	login        *url.Userinfo // name and password, instead of a token
}

// do makes a call and decodes the answer into out, which may be nil.
func (c *Client) do(ctx context.Context, in call, out any) error {
	_, err := c.doHeader(ctx, in, out)
	return err
}

func (c *Client) doHeader(ctx context.Context, in call, out any) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for try := 1; ; try++ {
		header, err := c.once(ctx, in, out)
		if err == nil || in.method != http.MethodGet || try == 3 || !passing(err) {
			return header, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Duration(try) * 100 * time.Millisecond):
		}
	}
}

// passing tells whether a read is worth another try.
func passing(err error) bool {
	var e *Error
	if errors.As(err, &e) {
		return e.Status >= 500
	}
	return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

func (c *Client) once(ctx context.Context, in call, out any) (http.Header, error) {
	target := c.base + "/api/v1" + in.path
	if strings.HasPrefix(in.path, "/api/") {
		target = c.base + in.path
	}
	if len(in.query) > 0 {
		target += "?" + in.query.Encode()
	}
	var body io.Reader
	if in.body != nil {
		b, err := json.Marshal(in.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, in.method, target, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	c.identify(req, in)
	if c.cfg.Fault != nil && in.method != http.MethodGet {
		c.cfg.Fault("forge: " + in.method + " " + in.path)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the forge: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("reading the forge's answer to %s %s: %w", in.method, in.path, err)
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("the forge's answer to %s %s is larger than %d bytes", in.method, in.path, maxAnswer)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		e := &Error{Method: in.method, Path: in.path, Status: resp.StatusCode, Message: message(b)}
		if to := resp.Header.Get("Location"); to != "" {
			e.Message = fmt.Sprintf("go to %.500q", to)
		}
		return nil, e
	}
	if out == nil || len(b) == 0 {
		return resp.Header, nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return nil, fmt.Errorf("reading the forge's answer to %s %s: %w", in.method, in.path, err)
	}
	return resp.Header, nil
}

// identify says in whose name a request is.
func (c *Client) identify(req *http.Request, in call) {
	token := c.cfg.Token
	if in.bot {
		token = c.cfg.BotToken
	}
	if in.login != nil {
		password, _ := in.login.Password()
		req.SetBasicAuth(in.login.Username(), password)
	} else if token != "" {
		req.Header.Set("Authorization", "token "+token)
	}
	if in.sudo != "" {
		req.Header.Set("Sudo", in.sudo)
	}
}

// message is the forge's error text.
func message(b []byte) string {
	var m struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(b, &m) != nil || m.Message == "" {
		m.Message = string(b)
	}
	return strings.ToValidUTF8(m.Message[:min(len(m.Message), 500)], "?")
}

// pages reads every page of a list. The last one is told by its Link header
// lacking a next, or, where there is no such header, by being empty.
func pages[T any](ctx context.Context, c *Client, in call) ([]T, error) {
	var all []T
	query := url.Values{}
	for k, v := range in.query {
		query[k] = v
	}
	query.Set("limit", strconv.Itoa(pageSize))
	in.query = query
	for page := 1; page <= maxPages; page++ {
		query.Set("page", strconv.Itoa(page))
		var some []T
		header, err := c.doHeader(ctx, in, &some)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
		link := header.Get("Link")
		if len(some) == 0 || (link != "" && !strings.Contains(link, `rel="next"`)) {
			return all, nil
		}
		if link == "" && len(some) < pageSize {
			return all, nil
		}
	}
	return nil, fmt.Errorf("%s has more than %d entries", in.path, maxPages*pageSize)
}

// Healthy tells whether the forge answers; nil when it does.
func (c *Client) Healthy(ctx context.Context) error {
	_, err := c.once(ctx, call{method: "GET", path: "/version"}, nil)
	return err
}

// An Account of the forge.
type Account struct {
	Login string `json:"login"`
	Admin bool   `json:"is_admin"` // of the whole forge
}

// Me is the token's account; ErrForbidden for a token that was revoked and for
// an account that may not sign in.
func (c *Client) Me(ctx context.Context) (Account, error) {
	var a Account
	err := c.do(ctx, call{method: "GET", path: "/user"}, &a)
	return a, err
}

// WhoAmI is the login name of the token's account.
func (c *Client) WhoAmI(ctx context.Context) (string, error) {
	a, err := c.Me(ctx)
	return a.Login, err
}
