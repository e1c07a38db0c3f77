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
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	callTimeout = 30 * time.Second
	pageSize    = 50  // the forge's default maximum
	maxPages    = 400 // 20,000 entries; more is an error, never a silent cut
)

// Errors that callers decide on; match with errors.Is.
var (
	ErrTooMany   = errors.New("too many entries")
	ErrNotFound  = errors.New("not found")
	ErrForbidden = errors.New("not allowed")
	ErrConflict  = errors.New("there already")
	ErrInvalid   = errors.New("not accepted")
	ErrReadOnly  = errors.New("archived") // the repository takes no changes
)

// errTooLarge is an answer larger than MaxAnswer.
var errTooLarge = errors.New("the answer is too large")

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
	case ErrReadOnly:
		return e.Status == http.StatusLocked
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
	// MaxAnswer is how long one answer may be, in bytes; 64 MiB when 0.
	MaxAnswer int64
	// Writes, when not nil, is told of each call that changes something, right before it is
	// made, and once more, with why, when it fails. It must not call the client.
	Writes func(ctx context.Context, w Write, failed error)
	// Fault, when not nil, is called with a name before each call that changes
	// something; tests end the process there.
	Fault func(point string)
	Log   *slog.Logger
}

// A Write is a call that changes something at the forge.
type Write struct {
	As           string // the account in whose name; "" for that of [Config.Token]
	Sudo         bool   // which is that of a person who wanted it
	Method, Path string // of the API, or of a page
}

// A Client talks to one forge. Its methods are safe for concurrent use.
type Client struct {
	cfg  Config
	base string
	http *http.Client

	is flavour

	// What was learned, so that it costs no call again; all of it can be asked
	// for anew.
	mu     sync.Mutex
	events map[onIssue]labelMark
	marked map[onIssue]marked
	pulls  map[Repo]*pullIndex
}

// onIssue names a label or a comment of ours on an issue.
type onIssue struct {
	Repo   Repo
	Number int64
	Name   string
}

// New checks cfg and returns a client. It makes no call.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
		return nil, fmt.Errorf("forge URL %q: want http://HOST or https://HOST", cfg.URL)
	}
	if cfg.MaxAnswer == 0 {
		cfg.MaxAnswer = 64 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Transport == nil {
		cfg.Transport = &http.Transport{MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute}
	}
	return &Client{
		cfg: cfg, base: strings.TrimRight(cfg.URL, "/"),
		events: map[onIssue]labelMark{}, marked: map[onIssue]marked{}, pulls: map[Repo]*pullIndex{},
		http: &http.Client{
			// Never carry a token to where an answer points.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport:     cfg.Transport,
		},
	}, nil
}

// A call is one request; the zero identity is the service's.
type call struct {
	method, path string
	query        url.Values
	body         any
	bot          bool
	sudo         string        // act as this account: site admins only
	login        *url.Userinfo // name and password, instead of a token
	probe        bool          // it changes nothing, whatever its method: what it is about is not there
}

// writes tells whether a call changes something.
func (in call) writes() bool { return in.method != http.MethodGet && !in.probe }

// as is in whose name a call is.
func (c *Client) as(in call) string {
	switch {
	case in.login != nil:
		return in.login.Username()
	case in.bot:
		return c.cfg.BotUser
	}
	return in.sudo
}

// tell tells of a write, and of how it failed.
func (c *Client) tell(ctx context.Context, w Write, failed error) {
	if c.cfg.Writes != nil {
		c.cfg.Writes(ctx, w, failed)
	}
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
	return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errTooLarge)
}

// once makes a call once; what it writes is told of.
func (c *Client) once(ctx context.Context, in call, out any) (http.Header, error) {
	w := Write{As: c.as(in), Sudo: in.sudo != "", Method: in.method, Path: in.path}
	if in.writes() {
		c.tell(ctx, w, nil)
	}
	header, err := c.request(ctx, in, out)
	if err != nil && in.writes() {
		c.tell(ctx, w, err)
	}
	return header, err
}

func (c *Client) request(ctx context.Context, in call, out any) (http.Header, error) {
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
	resp, err := c.follow(req)
	if err != nil {
		return nil, fmt.Errorf("asking the forge: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, c.cfg.MaxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("reading the forge's answer to %s %s: %w", in.method, in.path, err)
	}
	if int64(len(b)) > c.cfg.MaxAnswer {
		return nil, fmt.Errorf("%s %s: %w for us (%d bytes)", in.method, in.path, errTooLarge, c.cfg.MaxAnswer)
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

// follow sends a request, and a reading one again to where the forge says that
// a renamed repository is now: within the forge, for the token goes with it.
func (c *Client) follow(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil || req.Method != http.MethodGet || resp.StatusCode/100 != 3 {
		return resp, err
	}
	to, err := resp.Location()
	if err != nil || !strings.HasPrefix(to.String(), c.base+"/") {
		return resp, nil //nolint:nilerr // told as the answer that it is
	}
	if err := resp.Body.Close(); err != nil {
		return nil, err
	}
	again := req.Clone(req.Context())
	again.URL = to
	return c.http.Do(again)
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

// pageSizes are tried one after the other when a page is too large: texts on a
// forge have no bound, and a few long ones must not hide the others.
var pageSizes = []int{pageSize, 10, 1}

// pages reads every page of a list.
func pages[T any](ctx context.Context, c *Client, in call) ([]T, error) {
	var all []T
	err := eachPage(ctx, c, in, func(some []T, _ http.Header, more bool) bool {
		all = append(all, some...)
		return more
	})
	return all, err
}

// eachPage reads one page after the other for as long as next says so, which is
// told whether there are more. An entry that is too large by itself is left out,
// with a warning.
func eachPage[T any](ctx context.Context, c *Client, in call, next func(some []T, header http.Header, more bool) bool) error {
	query := url.Values{}
	for k, v := range in.query {
		query[k] = v
	}
	in.query = query
	sizes := pageSizes
	if limit, err := strconv.Atoi(query.Get("limit")); err == nil {
		sizes = slices.DeleteFunc(slices.Clone(sizes), func(n int) bool { return n > limit })
	}
	size, sofar := 0, 0
	for offset := 0; offset < maxPages*pageSize; {
		n := sizes[size]
		query.Set("limit", strconv.Itoa(n))
		query.Set("page", strconv.Itoa(offset/n+1))
		var some []T
		header, err := c.doHeader(ctx, in, &some)
		left := errors.Is(err, errTooLarge)
		switch {
		case left && size < len(sizes)-1:
			size++
			continue
		case left:
			c.cfg.Log.Warn("left out an entry that is too large", "path", in.path, "entry", offset+1)
		case err != nil:
			return err
		}
		sofar += len(some)
		if offset += n; offset%sizes[0] == 0 {
			size = 0
		}
		if !next(some, header, left || more(header, len(some), n, sofar)) {
			return nil
		}
	}
	return fmt.Errorf("%s has more than %d: %w", in.path, maxPages*pageSize, ErrTooMany)
}

// more tells whether another page follows one of n entries where limit were
// asked for, by the Link header, else by the count of all, else by the page
// being full. A page may be shorter than was asked for: a forge has its own
// limit, and leaves out what is hidden.
func more(header http.Header, n, limit, sofar int) bool {
	if link := header.Get("Link"); link != "" {
		return strings.Contains(link, `rel="next"`)
	}
	if total, err := strconv.Atoi(header.Get("X-Total-Count")); err == nil {
		return n > 0 && sofar < total
	}
	return n >= limit
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
