package podman

import (
	"context"
	"time"
)

// Watch asks again and again for the containers that carry labels, until ctx ends: that takes
// their locks in podman, as most calls do, and a check of liveness does not. When there was no
// answer for as long as patience, it calls stuck, and again after each further time of that
// length. podman 4.3 can stand still so for good, when one removes a pod by hand in the moment in
// which another starts it.
//
// An error is an answer.
func (c *Client) Watch(ctx context.Context, labels map[string]string, patience time.Duration, stuck func(context.Context)) {
	tick := time.NewTicker(patience / 4)
	defer tick.Stop()
	for {
		asked, cancel := context.WithTimeout(ctx, patience)
		_, err := c.Containers(asked, labels)
		late := err != nil && asked.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return
		}
		if late {
			stuck(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
