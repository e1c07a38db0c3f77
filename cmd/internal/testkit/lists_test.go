package testkit_test

import (
	"fmt"
	"sync"
	"testing"
)

// Podman's lists end with an error when something goes away that they have begun to
// list: ours begin again.
func TestListsWhileThingsGo(t *testing.T) {
	p := world.client
	ctx := t.Context()
	var wait sync.WaitGroup
	done := make(chan struct{})
	for n := range 3 {
		wait.Go(func() {
			labels := map[string]string{"lists": fmt.Sprint(n)}
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				name := fmt.Sprintf("lists-%d-%d", n, i)
				if _, err := p.EnsureVolume(ctx, name, labels); err != nil {
					t.Error(err)
					return
				}
				if err := p.RemoveVolume(ctx, name); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 200 {
		if _, err := p.Volumes(ctx, map[string]string{"lists": "0"}); err != nil {
			t.Error(err)
			break
		}
	}
	close(done)
	wait.Wait()
}
