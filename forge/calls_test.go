package forge_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/forge"
)

func TestMentioned(t *testing.T) {
	for name, tt := range map[string]struct {
		text, word string
		want       bool
	}{
		"alone":                   {"@bot", "", true},
		"with an order":           {"@bot fast please", "fast", true},
		"in capitals":             {"Hello @BOT, do it", "do", true},
		"at a sentence's end":     {"please see to it, @bot.", "", true},
		"in brackets":             {"(@bot)", "", true},
		"in bold":                 {"**@bot** go", "", true},
		"on a line of a list":     {"- one\n- @bot two", "two", true},
		"after a quote":           {"> what she said\n\n@bot do that", "do", true},
		"after code":              {"```\nx\n```\n@bot do that", "do", true},
		"after a span":            {"`x` @bot", "", true},
		"after a tick":            {"it's a ` only, @bot", "", true},
		"with Windows' lines":     {"hello\r\n@bot\r\nbye", "bye", true},
		"after a long letter":     {"ȺȺȺ @bot now", "now", true},
		"nobody":                  {"bot", "", false},
		"another":                 {"@bottle @bot-2 @bot_x @bot.x @bots", "", false},
		"a team of it":            {"@bot/team", "", false},
		"an address":              {"me@bot", "", false},
		"of another host":         {"@bot@example.org", "", false},
		"a path":                  {"https://example.org/@bot", "", false},
		"escaped":                 {`\@bot`, "", false},
		"a quote":                 {"> @bot do it", "", false},
		"a quote in a quote":      {">> @bot do it", "", false},
		"a quote in a list":       {"- > @bot do it", "", false},
		"a quote that goes on":    {"> she said\n@bot do it", "", false},
		"a span":                  {"say `@bot do it` there", "", false},
		"a span of two ticks":     {"say ``a ` @bot`` there", "", false},
		"a span of two lines":     {"say `x\n@bot` there", "", false},
		"a block":                 {"```\n@bot\n```", "", false},
		"a block with a language": {"```sh\n@bot\n```\n", "", false},
		"a block of tildes":       {"~~~\n@bot\n```\n@bot\n~~~", "", false},
		"a block without end":     {"```\n@bot", "", false},
		"a longer block":          {"````\n```\n@bot\n```\n````", "", false},
		"a block in a list":       {"- x\n  ```\n  @bot\n  ```", "", false},
		"an indented block":       {"x\n\n    @bot\n", "", false},
		"a tab":                   {"\t@bot", "", false},
		"what is not shown":       {"x <!-- @bot --> y", "", false},
		"what is never shown":     {"x <!--\n@bot\n", "", false},
		"HTML's code":             {"<code>@bot</code> <PRE class=a>\n@bot</PRE>", "", false},
		"HTML's quote":            {"<blockquote>\n@bot\n</blockquote>", "", false},
	} {
		word, got := forge.Mentioned(tt.text, "bot")
		if got != tt.want || got && word != tt.word {
			t.Errorf("%s: %q: %t %q", name, tt.text, got, word)
		}
	}
	if _, ok := forge.Mentioned("@", ""); ok {
		t.Error("nobody is mentioned")
	}
}

func FuzzMentioned(f *testing.F) {
	f.Add("> `@bot` <!-- ```\n~~~ @bot")
	f.Fuzz(func(t *testing.T, text string) {
		if _, ok := forge.Mentioned(text, "bot"); ok && !strings.Contains(strings.ToLower(text), "@bot") {
			t.Errorf("%q", text)
		}
	})
}

// entry is one of a timeline, as JSON; edited ones were changed a second later.
func entry(id int, kind, user, more string, edited bool) string {
	updated := id
	if edited {
		updated++
	}
	return fmt.Sprintf(`{"id": %d, "type": %q, "user": {"login": %q}, "created_at": "2026-01-02T03:04:%02dZ", "updated_at": "2026-01-02T03:04:%02dZ"%s}`, id, kind, user, id, updated, more)
}

func TestCallsInATimeline(t *testing.T) {
	says := func(id int, user, text string) string {
		return entry(id, "comment", user, fmt.Sprintf(`, "body": %q`, text), false)
	}
	label := func(id int, body string) string {
		return entry(id, "label", "svc", fmt.Sprintf(`, "body": %q, "label": {"name": "go"}`, body), false)
	}
	assign := func(id int, who string, removed bool) string {
		return entry(id, "assignees", "ann", fmt.Sprintf(`, "assignee": {"login": %q}, "removed_assignee": %t`, who, removed), false)
	}
	for name, tt := range map[string]struct {
		timeline []string
		calls    string // since the last event
		cause    string // before the label that is on
		away     bool
	}{
		"nothing":                     {nil, "[] first", "", false},
		"a mention":                   {[]string{says(1, "ann", "@bot fast")}, "[1 ann fast] first", "", false},
		"two":                         {[]string{says(1, "ann", "@bot"), says(2, "eve", "@bot")}, "[1 ann |2 eve ] first", "", false},
		"one that was changed":        {[]string{entry(1, "comment", "ann", `, "body": "@bot"`, true)}, "[] first", "", false},
		"an assignment":               {[]string{assign(1, "bot", false), assign(2, "bob", false)}, "[1 ann assigned] first", "", false},
		"one that was taken back":     {[]string{assign(1, "bot", false), assign(2, "bot", true)}, "[] first", "", false},
		"before the label":            {[]string{says(1, "ann", "@bot"), label(2, "1")}, "[]", "[1 ann ] first", false},
		"before the label went":       {[]string{says(1, "ann", "@bot"), label(2, "1"), label(3, "")}, "[]", "", false},
		"after the label went":        {[]string{label(1, "1"), label(2, ""), says(3, "ann", "@bot")}, "[3 ann ]", "", false},
		"between two labels":          {[]string{says(1, "ann", "@bot"), label(2, "1"), label(3, ""), label(4, "1")}, "[]", "[]", false},
		"sent away":                   {[]string{assign(1, "bot", false), label(2, "1"), assign(3, "bot", true)}, "[]", "[1 ann assigned] first", true},
		"sent away and called again":  {[]string{assign(1, "bot", false), label(2, "1"), assign(3, "bot", true), assign(4, "bot", false)}, "[]", "[1 ann assigned] first", false},
		"sent away before that":       {[]string{assign(1, "bot", true), label(2, "1")}, "[]", "[] first", false},
		"somebody else is sent away":  {[]string{label(1, "1"), assign(2, "bob", true)}, "[]", "[] first", false},
		"by nobody that is known":     {[]string{entry(1, "comment", "", `, "body": "@bot"`, false)}, "[] first", "", false},
		"a mention while it is on":    {[]string{label(1, "1"), says(2, "ann", "@bot"), label(3, "")}, "[]", "", false},
		"a mention in another's text": {[]string{says(1, "ann", "> @bot\n\nno")}, "[] first", "", false},
	} {
		c, err := forge.New(forge.Config{URL: "http://forge", Token: "t", BotToken: "b", BotUser: "bot", ServiceUser: "svc", Transport: timeline(tt.timeline)})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time from what is remembered
			off, err := c.CallsOf(t.Context(), repo, 1, "go")
			if err != nil {
				t.Fatal(err)
			}
			ev, on, err := c.LabelEvent(t.Context(), repo, 1, "go")
			if err != nil {
				t.Fatal(err)
			}
			if got := callText(off.Calls, off.First); got != tt.calls {
				t.Errorf("%s: called %s, want %s", name, got, tt.calls)
			}
			cause := ""
			if on {
				cause = callText(ev.Calls, ev.First)
			}
			if cause != tt.cause || on && ev.Away != tt.away {
				t.Errorf("%s: the label's cause is %s, away %t; want %s, %t", name, cause, ev.Away, tt.cause, tt.away)
			}
		}
	}
}

func callText(calls []forge.Call, first bool) string {
	var all []string
	for _, c := range calls {
		word := c.Word
		if c.Assigned {
			word = "assigned"
		}
		all = append(all, fmt.Sprint(c.ID, " ", c.User, " ", word))
	}
	text := "[" + strings.Join(all, "|") + "]"
	if first {
		text += " first"
	}
	return text
}

// timeline is a forge that has one and knows nothing else.
type timeline []string

func (tl timeline) RoundTrip(r *http.Request) (*http.Response, error) {
	body := "[" + strings.Join(tl, ",") + "]"
	if p := r.URL.Query().Get("page"); p != "" && p != "1" {
		body = "[]"
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// What a mention is taken from is looked at again before it counts.
func TestAMentionStands(t *testing.T) {
	const good = `{"id": 7, "body": "@bot", "user": {"login": "Ann"}, "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z"}`
	for name, tt := range map[string]struct {
		body string
		want bool
	}{
		"as it was":          {good, true},
		"changed":            {strings.Replace(good, `05Z"}`, `06Z"}`, 1), false},
		"another's":          {strings.Replace(good, "Ann", "eve", 1), false},
		"not there":          {"", false},
		"no comment":         {"{}", false},
		"without a mention":  {strings.Replace(good, "@bot", "hello", 1), false},
		"from another forge": {strings.Replace(good, `"body"`, `"original_author": "mallory", "body"`, 1), false},
	} {
		c, err := forge.New(forge.Config{URL: "http://forge", Token: "t", BotToken: "b", BotUser: "bot", ServiceUser: "svc", Transport: one(tt.body)})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.CallStands(t.Context(), repo, forge.Call{ID: 7, User: "ann"}); err != nil || got != tt.want {
			t.Errorf("%s: %t %v", name, got, err)
		}
	}
}

// one is a forge with one answer, "" for none.
type one string

func (o one) RoundTrip(r *http.Request) (*http.Response, error) {
	status := 200
	if o == "" {
		status = 404
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(o))), Request: r}, nil
}
