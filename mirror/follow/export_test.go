package follow

import "context"

// told is what was told last, by follower.
var told = map[*Follower]string{}

// Settle is one round of looking for issues that commits have closed.
func Settle(ctx context.Context, f *Follower) { told[f] = f.settle(ctx, told[f]) }
