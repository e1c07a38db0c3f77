package audit_test

import (
	"testing"

	"codeberg.org/devaipod/devaipod/pods/audit"
)

// What is told later adds to what was told before, and nothing goes back.
func TestACauseAddsUp(t *testing.T) {
	outer := audit.Because(t.Context(), audit.Entry{About: "ada/app#3", Who: "@ann", Rule: "may push"})
	inner := audit.Because(outer, audit.Entry{Act: "answer", Who: "@bob", Done: "comment 7"})
	if got, want := audit.Cause(inner), (audit.Entry{Act: "answer", About: "ada/app#3", Who: "@bob", Rule: "may push", Done: "comment 7"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := audit.Cause(outer), (audit.Entry{About: "ada/app#3", Who: "@ann", Rule: "may push"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := audit.Cause(audit.Afresh(inner)); got != (audit.Entry{}) || audit.Cause(t.Context()) != got {
		t.Errorf("%+v without a cause", got)
	}
	if audit.IsKept(inner) || !audit.IsKept(audit.Because(audit.Kept(inner), audit.Entry{Who: "@eve"})) {
		t.Error("who keeps entries is not known")
	}
}
