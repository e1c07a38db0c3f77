package pods_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/backend"
)

// noBackend and tagged stand in for podman, which has the image as soon as it has its name.
type noBackend struct{ backend.Backend }

type images = pods.Images // which has a method of that name

type tagged struct {
	images
	here bool
}

func (i *tagged) ImageExists(context.Context, string) (bool, error) { return i.here, nil }

// An image has its name before it is found too large, and removed: until then nobody has it.
func TestAnImageIsNotThereBeforeItsBuildIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		podman := &tagged{}
		m, err := pods.New(pods.Config{Instance: "i", StateDir: t.TempDir(), Backend: noBackend{}, Images: podman, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		judged := make(chan error)
		have := func(told chan<- error) {
			told <- m.Have(t.Context(), "localhost/i/build-7:1", func(context.Context, io.Writer) error {
				podman.here = true
				return <-judged
			})
		}
		first, second := make(chan error, 1), make(chan error, 1)
		go have(first)
		synctest.Wait()
		go have(second)
		synctest.Wait()
		if len(second) > 0 {
			t.Errorf("who asks meanwhile is told %v", <-second)
		}
		podman.here = false
		judged <- errors.New("it is too large")
		for _, told := range []chan error{first, second} {
			if err := <-told; err == nil || !strings.Contains(err.Error(), "it is too large") {
				t.Errorf("told %v", err)
			}
		}
	})
}
