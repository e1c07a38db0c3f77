package audit

import "context"

type causeKey struct{}

type keptKey struct{}

// Because returns a context for acts that are done for the sake of what e says: who asked, by
// which rule, about what, and what of it, as far as these are told; the rest stays as it was.
func Because(ctx context.Context, e Entry) context.Context {
	now := Cause(ctx)
	for have, more := range map[*string]string{&now.Act: e.Act, &now.About: e.About, &now.Who: e.Who, &now.Rule: e.Rule, &now.Done: e.Done} {
		if more != "" {
			*have = more
		}
	}
	return context.WithValue(ctx, causeKey{}, now)
}

// Cause is what [Because] was told.
func Cause(ctx context.Context) Entry {
	e, _ := ctx.Value(causeKey{}).(Entry)
	return e
}

// Afresh returns a context without a cause.
func Afresh(ctx context.Context) context.Context {
	return context.WithValue(ctx, causeKey{}, Entry{})
}

// Kept returns a context for acts of which the caller keeps entries itself, before and after.
func Kept(ctx context.Context) context.Context { return context.WithValue(ctx, keptKey{}, true) }

// IsKept tells whether ctx is of Kept.
func IsKept(ctx context.Context) bool { return ctx.Value(keptKey{}) != nil }
