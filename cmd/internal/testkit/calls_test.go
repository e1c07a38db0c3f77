package testkit_test

import (
	"fmt"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/forge"
)

// calls are how people call the bot to an issue, as the real forge tells of it.
func calls(t *testing.T, c *forge.Client, prov forge.Provisioner, api *testkit.API) {
	ctx, begin := t.Context(), time.Now().Add(-time.Minute)
	_, _, err := prov.EnsureUser(ctx, forge.User{Name: "cal", Email: "cal@example.org", Password: "a-given-password-1"})
	must(t, err)
	cal := &testkit.API{URL: api.URL, User: "cal", Password: "a-given-password-1"}
	r := forge.Repo{Owner: "svc", Name: "calls"}
	_, _, err = c.CreateRepo(ctx, r, false, "main")
	must(t, err)
	must(t, c.EnsureBot(ctx, r))
	_, err = c.EnsureLabels(ctx, r, forge.DefaultLabels("devaipod"))
	must(t, err)
	issue, err := c.CreateIssue(ctx, r, forge.IssueSpec{Title: "one", Body: "@bot"})
	must(t, err)
	if issue.Created.IsZero() || issue.Brought {
		t.Errorf("issue %+v", issue)
	}
	path := fmt.Sprintf("/repos/%s/issues/%d", r, issue.Number)
	says := func(as *testkit.API, text string) (id int64) {
		t.Helper()
		var made struct{ ID int64 }
		must(t, as.Post(ctx, path+"/comments", map[string]string{"body": text}, &made))
		return made.ID
	}
	assign := func(whom ...string) {
		t.Helper()
		do(t, api, "PATCH", path, map[string]any{"assignees": append([]string{}, whom...)})
	}
	first := says(cal, "@bot fast, please")
	says(cal, "> @bot")
	assign("bot")
	off, err := c.CallsOf(ctx, r, issue.Number, "devaipod")
	must(t, err)
	found := off.Calls
	if len(found) != 2 || !off.First || found[0].ID != first || found[0].User != "cal" || found[0].Word != "fast" || found[1].User != "svc" || !found[1].Assigned || found[1].At.IsZero() {
		t.Errorf("calls %+v", off)
	}
	if ok, err := c.CallStands(ctx, r, found[0]); err != nil || !ok {
		t.Errorf("the mention stands: %t, %v", ok, err)
	}
	listed := func() (times int) {
		t.Helper()
		all, err := c.Called(ctx, begin)
		must(t, err)
		for _, i := range all {
			if i.Repo == r && i.Number == issue.Number {
				times++
			}
		}
		return times
	}
	until := func(times int) { // the index follows within seconds
		t.Helper()
		for deadline := time.Now().Add(time.Minute); listed() != times; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("listed %d times, want %d", listed(), times)
			}
		}
	}
	until(2) // as mentioned, and as assigned
	assign()
	until(1)
	if off, err := c.CallsOf(ctx, r, issue.Number, "devaipod"); err != nil || len(off.Calls) != 1 || off.Calls[0].ID != first {
		t.Errorf("after the bot was sent away: %+v, %v", off, err)
	}
	assign("bot")
	must(t, c.AddLabels(ctx, r, issue.Number, "devaipod"))
	ev, ok, err := c.LabelEvent(ctx, r, issue.Number, "devaipod")
	if err != nil || !ok || !ev.First || len(ev.Calls) != 2 || ev.Away {
		t.Errorf("the label's event %+v, %t, %v", ev, ok, err)
	}
	assign()
	if ev, ok, err := c.LabelEvent(ctx, r, issue.Number, "devaipod"); err != nil || !ok || !ev.Away || ev.AwayBy != "svc" {
		t.Errorf("sent away: %+v, %t, %v", ev, ok, err)
	}
	must(t, c.RemoveLabel(ctx, r, issue.Number, "devaipod"))
	if off, err := c.CallsOf(ctx, r, issue.Number, "devaipod"); err != nil || len(off.Calls) != 0 || off.First || off.User != "svc" {
		t.Errorf("after the label: %+v, %v", off, err)
	}
	edited := says(cal, "@bot")
	var at struct {
		Created time.Time `json:"created_at"`
	}
	must(t, cal.Get(ctx, fmt.Sprintf("/repos/%s/issues/comments/%d", r, edited), &at))
	time.Sleep(time.Until(at.Created.Add(1100 * time.Millisecond))) // its times are whole seconds
	do(t, cal, "PATCH", fmt.Sprintf("/repos/%s/issues/comments/%d", r, edited), map[string]string{"body": "@bot, do something else"})
	if ok, err := c.CallStands(ctx, r, forge.Call{ID: edited, User: "cal"}); err != nil || ok {
		t.Errorf("a comment that was changed stands: %t, %v", ok, err)
	}
}
