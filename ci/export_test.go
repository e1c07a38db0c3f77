package ci

import "context"

// Pass is one look for approvals.
func (a *Approver) Pass(ctx context.Context) error { return a.pass(ctx) }
