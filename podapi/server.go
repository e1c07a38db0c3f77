package podapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
)

// slowest is how long a watcher may take what it is sent; tests are not that patient.
var slowest = 30 * time.Second

// After something was sent to a watcher, what comes at once after it is sent together.
const (
	batch      = 100 // events
	batchEvery = 20 * time.Millisecond
)

// beatEvery is how often a watcher is told that there is nothing new.
const beatEvery = 15 * time.Second

// maxMessage bounds a message to the agent, in bytes.
const maxMessage = 1 << 20

// NewServer returns the pod-api's handler over a driver and its journal.
func NewServer(d Driver, j *Journal, log *slog.Logger) http.Handler {
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.Use(gin.CustomRecoveryWithWriter(nil, func(c *gin.Context, err any) {
		log.Error("pod-api: panic", "path", c.Request.URL.Path, "err", err)
		c.AbortWithStatus(http.StatusInternalServerError)
	}))
	s := &server{driver: d, journal: j, slowest: slowest, log: log}
	r.GET("/healthz", func(c *gin.Context) { c.String(http.StatusOK, "ok\n") })
	r.GET("/readyz", s.ready)
	r.GET("/openapi.yaml", func(c *gin.Context) { c.Data(http.StatusOK, "application/yaml", OpenAPI) })
	r.GET("/summary", func(c *gin.Context) { c.JSON(http.StatusOK, d.Summary()) })
	r.GET("/events", s.events)
	r.GET("/messages", s.messages)
	r.POST("/messages", s.message)
	r.GET("/transcript", s.transcript)
	r.GET("/metrics", gin.WrapH(metrics(d)))
	r.POST("/stop", s.stop)
	r.GET("/git/status", s.git)
	if p, ok := d.(Paged); ok {
		r.Any("/agent/*path", gin.WrapH(http.StripPrefix("/agent", pagesOf(p, log))))
	}
	return r
}

// pagesOf passes requests on to the agent's own server, with nothing of a person's:
// it is hostile.
func pagesOf(p Paged, log *slog.Logger) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "agent", r.In.Host
			r.Out.Header.Del("Cookie")
			r.Out.Header.Del("Authorization")
		},
		ModifyResponse: func(resp *http.Response) error {
			resp.Header.Del("Set-Cookie")
			return nil
		},
		Transport: p.Pages(), FlushInterval: -1, BufferPool: Buffers, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "the agent does not answer: "+err.Error(), http.StatusBadGateway)
		},
	}
}

type server struct {
	driver  Driver
	journal *Journal
	slowest time.Duration
	log     *slog.Logger
}

// probeWithin is how long all probes may take.
const probeWithin = 5 * time.Second

// ready tells of each probe by name, a line each.
func (s *server) ready(c *gin.Context) {
	ctx, cancel := context.WithTimeout(c.Request.Context(), probeWithin)
	defer cancel()
	agent, sum := Probe{Name: "agent"}, s.driver.Summary()
	switch {
	case sum.State == Starting:
		agent.Err = errors.New("starting")
	case sum.Cause == CauseSilent:
		agent.Err = errors.New(Line(sum.Error, 300))
	}
	probes := []Probe{agent}
	if d, ok := s.driver.(Probed); ok {
		probes = append(probes, d.Probes(ctx)...)
	}
	status, text := http.StatusOK, ""
	for _, p := range probes {
		word := "ok"
		if p.Err != nil {
			status, word = http.StatusServiceUnavailable, Line(p.Err.Error(), 500)
		}
		if p.Name == agent.Name && sum.Version != "" {
			word += " (" + Line(sum.Version, 300) + ")"
		}
		text += p.Name + ": " + word + "\n"
	}
	c.String(status, "%s", text)
}

// events streams the journal as server-sent events (WHATWG HTML, 9.2), from
// after an id, the query's or Last-Event-ID; follow=0 ends with what is there. Who
// takes nothing for a while is dropped, and can come back for the rest.
func (s *server) events(c *gin.Context) {
	from := c.DefaultQuery("after", "0")
	if seen := c.GetHeader("Last-Event-ID"); seen != "" { // by a browser, which comes back
		from = seen
	}
	after, err := strconv.ParseInt(from, 10, 64)
	if err != nil || after < 0 {
		c.String(http.StatusBadRequest, "after, Last-Event-ID: want an event's id\n")
		return
	}
	c.Header("Content-Type", "text/event-stream")
	c.Header("Cache-Control", "no-cache")
	c.Status(http.StatusOK)
	s.watch(c, s.journal.from(after), c.Query("follow") == "0")
}

// watch sends what comes after an id, until the watcher is gone or too slow, or at the
// end when that is asked for.
func (s *server) watch(c *gin.Context, after int64, end bool) {
	c.Writer.WriteHeaderNow()
	conn := http.NewResponseController(c.Writer)
	if under, ok := c.Writer.(interface{ Unwrap() http.ResponseWriter }); ok {
		conn = http.NewResponseController(under.Unwrap()) // gin's own says nothing of a Flush that failed
	}
	write := func(format string, a ...any) error {
		if err := conn.SetWriteDeadline(time.Now().Add(s.slowest)); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.Writer, format, a...)
		return err
	}
	send := func(ev Event) error {
		b, err := json.Marshal(ev)
		if err == nil {
			after, err = ev.ID, write("id: %d\ndata: %s\n\n", ev.ID, b)
		}
		return err
	}
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		events, more, oldest := s.journal.next(after, batch)
		err := s.journal.kept(after, oldest, send)
		for _, ev := range events {
			if err == nil {
				err = send(ev)
			}
		}
		if err != nil {
			return
		}
		if len(events) == batch {
			continue
		}
		if conn.Flush() != nil || end {
			return
		}
		select {
		case <-c.Request.Context().Done():
			return
		case <-time.After(batchEvery):
		}
		select {
		case <-c.Request.Context().Done():
			return
		case <-more:
		case <-beat.C:
			if write(": still here\n\n") != nil {
				return
			}
		}
	}
}

func (s *server) message(c *gin.Context) {
	var in struct {
		ID   string `json:"id"`
		Text string `json:"text"`
	}
	c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, maxMessage)
	err := c.ShouldBindJSON(&in)
	if large := new(http.MaxBytesError); errors.As(err, &large) {
		c.String(http.StatusRequestEntityTooLarge, "a message has at most 1 MiB\n")
		return
	}
	if err != nil || strings.TrimSpace(in.Text) == "" {
		c.String(http.StatusBadRequest, "want {\"text\": \"…\"} of at most 1 MiB, and an id if it must not be told twice\n")
		return
	}
	mark := ""
	if in.ID != "" {
		mark = "message " + in.ID
	}
	if s.journal.Has(mark) { // the agent was told
		c.Status(http.StatusNoContent)
		return
	}
	err = s.driver.Send(c.Request.Context(), in.Text)
	if err == nil {
		s.journal.Once(mark, EventPerson, in.Text)
	}
	s.answer(c, err)
}

// messages are what agent and person have said to one another lately.
func (s *server) messages(c *gin.Context) {
	events, _ := s.journal.After(0)
	said := []Event{}
	for _, ev := range events {
		if ev.Type == EventText || ev.Type == EventPerson {
			said = append(said, ev)
		}
	}
	c.JSON(http.StatusOK, said)
}

// maxPage bounds a page of the transcript.
const maxPage = 1000

// transcript is all that is kept of what happened, an event a line; with limit the
// newest of that, before an id.
func (s *server) transcript(c *gin.Context) {
	all := s.journal.all
	if c.Query("limit") != "" || c.Query("before") != "" {
		n, err := strconv.Atoi(c.DefaultQuery("limit", strconv.Itoa(maxPage)))
		before, err2 := strconv.ParseInt(c.DefaultQuery("before", strconv.Itoa(math.MaxInt64)), 10, 64)
		if err != nil || err2 != nil || n < 1 || n > maxPage || before < 1 {
			c.String(http.StatusBadRequest, "limit: want 1 to %d; before: an event's id\n", maxPage)
			return
		}
		all = func(each func(Event) error) error {
			page, err := s.journal.page(before, n)
			for _, ev := range page {
				err = errors.Join(err, each(ev))
			}
			return err
		}
	}
	c.Header("Content-Type", "application/jsonl")
	c.Status(http.StatusOK)
	lines := json.NewEncoder(c.Writer)
	if err := all(func(ev Event) error { return lines.Encode(ev) }); err != nil {
		s.log.Warn("a transcript ended early", "err", err)
	}
}

// git tells how the clone stands.
func (s *server) git(c *gin.Context) {
	err := ErrNothingSaved
	var status json.RawMessage
	if d, ok := s.driver.(Cloned); ok {
		status, err = d.GitStatus(c.Request.Context())
	}
	switch {
	case errors.Is(err, ErrNothingSaved):
		c.String(http.StatusNotFound, err.Error()+"\n")
	case err != nil:
		c.String(http.StatusBadGateway, err.Error()+"\n")
	default:
		c.Data(http.StatusOK, "application/json; charset=utf-8", status)
	}
}

func (s *server) stop(c *gin.Context) { s.answer(c, s.driver.Stop(c.Request.Context())) }

// ErrNotReady is returned by a Driver whose agent is not up.
var ErrNotReady = errors.New("the agent is not up yet")

func (s *server) answer(c *gin.Context, err error) {
	switch {
	case err == nil:
		c.Status(http.StatusNoContent)
	case errors.Is(err, ErrNotReady), errors.Is(err, ErrBusy):
		c.String(http.StatusServiceUnavailable, err.Error()+"\n")
	default:
		c.String(http.StatusBadGateway, err.Error()+"\n")
	}
}
