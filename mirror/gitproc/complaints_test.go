package gitproc_test

import (
	"testing"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

func TestWhatOurOwnServersSayIsAmongTheComplaints(t *testing.T) {
	var said gitproc.Tail
	said.Max = 1000
	said.Bytes = []byte("remote: Counting objects: 3\nremote: devaipod: github.com/a/b is not in mirror.allow_upstream\nfatal: unable to access 'http://x/': The requested URL returned error: 403\n")
	if got, want := said.Complaints(), "github.com/a/b is not in mirror.allow_upstream; unable to access 'http://x/': The requested URL returned error: 403"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
