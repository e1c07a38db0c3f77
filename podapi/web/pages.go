package web

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

//go:embed *.html
var files embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"when":  when,
	"since": since,
	"http":  httpOnly,
	"lines": func(s string) []diffLine { return diffLines(s) },
}).ParseFS(files, "*.html"))

// since is how long ago something was, in one unit.
func since(t time.Time) string {
	d := time.Since(t)
	switch {
	case t.IsZero():
		return ""
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// httpOnly is a link's target, "" for one that is no page.
func httpOnly(link string) string {
	if strings.HasPrefix(link, "http://") || strings.HasPrefix(link, "https://") {
		return link
	}
	return ""
}

func (s *Site) render(w http.ResponseWriter, status int, name string, data any) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, data); err != nil {
		s.cfg.Log.Error("a page can't be made", "page", name, "err", err)
		http.Error(w, "this page can't be made; the service's log has why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the browser is gone: nobody to tell
}

type loginPage struct{ Failed, Late bool }

type row struct {
	Pod
	Link     string
	Unpushed int
}

type listPage struct{ Rows []row }

func (s *Site) listed(r *http.Request) listPage {
	var l listPage
	for _, p := range s.cfg.Pods.List() {
		unpushed, err := s.cfg.Pods.Unpushed(r.Context(), p.Name)
		if err != nil {
			s.cfg.Log.Debug("what of an agent's work is not on the forge can't be told", "pod", p.Name, "err", err) // its page says so
		}
		l.Rows = append(l.Rows, row{p, s.Link(p.Name), unpushed})
	}
	return l
}

func (s *Site) list(w http.ResponseWriter, r *http.Request) {
	s.render(w, http.StatusOK, "list", s.listed(r))
}

func (s *Site) rows(w http.ResponseWriter, r *http.Request) {
	s.render(w, http.StatusOK, "rows", s.listed(r))
}

// A podPage is what a pod's page shows.
type podPage struct {
	known
	Home string // URL of the list
	Own  string // of the agent's own pages
	past
	LastSeen int64 // the id of the last of all events
	Old      bool  // the events are earlier ones
}

// A past is a part of what an agent did.
type past struct {
	Said    []podapi.Event
	Earlier int64 // the id before which there is more, 0 for none
}

// maxShown bounds the events that a page begins with.
const maxShown = 200

func (s *Site) gather(r *http.Request) (podPage, bool) {
	p, ok := s.find(podName(r))
	if !ok {
		return podPage{}, false
	}
	page := podPage{known: s.know(r.Context(), p), Home: s.base() + "/pods/", Own: s.podBase(p.Name+ofAgent) + "/"}
	return page, true
}

func (s *Site) pod(w http.ResponseWriter, r *http.Request) {
	page, ok := s.gather(r)
	if !ok {
		s.render(w, http.StatusNotFound, "gone", page)
		return
	}
	var err error
	if page.past, err = s.earlier(r); err != nil {
		s.cfg.Log.Warn("what an agent did can't be shown", "pod", page.Name, "err", err)
	}
	page.Old = r.URL.Query().Get("before") != ""
	if n := len(page.Said); n > 0 {
		page.LastSeen = page.Said[n-1].ID
	}
	s.render(w, http.StatusOK, "pod", page)
}

// earlier is what was before what a request names, or the newest.
func (s *Site) earlier(r *http.Request) (past, error) {
	before, err := strconv.ParseInt(r.URL.Query().Get("before"), 10, 64)
	if err != nil {
		before = math.MaxInt64
	}
	said, err := s.cfg.Pods.Past(podName(r), before, maxShown+1)
	p := past{Said: said}
	if len(said) > maxShown {
		p.Said = said[1:]
		p.Earlier = p.Said[0].ID
	}
	return p, err
}

// past is a part of what an agent did, for the page's script.
func (s *Site) past(w http.ResponseWriter, r *http.Request) {
	p, err := s.earlier(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	s.render(w, http.StatusOK, "past", p)
}

// facts is the part of the page that changes, for its script.
func (s *Site) facts(w http.ResponseWriter, r *http.Request) {
	page, ok := s.gather(r)
	if !ok {
		http.NotFound(w, r)
		return
	}
	s.render(w, http.StatusOK, "facts", page)
}

type diffPage struct {
	Pod
	Text string
}

// A diffLine is one line of a diff and what it is.
type diffLine struct{ Kind, Text string }

func diffLines(text string) (out []diffLine) {
	for line := range strings.Lines(text) {
		kind := "same"
		switch {
		case strings.HasPrefix(line, "diff "), strings.HasPrefix(line, "+++"), strings.HasPrefix(line, "---"):
			kind = "file"
		case strings.HasPrefix(line, "@@"):
			kind = "place"
		case strings.HasPrefix(line, "+"):
			kind = "new"
		case strings.HasPrefix(line, "-"):
			kind = "old"
		}
		out = append(out, diffLine{kind, line})
	}
	return out
}

func (s *Site) diff(w http.ResponseWriter, r *http.Request) {
	p, ok := s.find(podName(r))
	if !ok {
		http.NotFound(w, r)
		return
	}
	text, err := s.cfg.Pods.Diff(r.Context(), p.Name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	s.render(w, http.StatusOK, "diff", diffPage{p, text})
}
