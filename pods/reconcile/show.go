package reconcile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// said remembers our last comment, so that an unchanged one costs no call.
type said struct {
	body     string
	state    State
	position int
	ask      string        // what a person was told that it asks
	at       time.Duration // Uptime
}

// show stores the view, and tells it on the issue when it has changed: first in
// words, then by the label, which is what people and programs wait for.
func (l *Loop) show(ctx context.Context, i Issue, v View) error {
	v = l.keepView(i, v)
	last := l.said[i.Key]
	body := v.comment(l.cfg.Label, l.cfg.Harmless)
	rings := v.Ask != "" && v.Ask != last.ask
	if !rings && (body == last.body || !l.mayTell(last, v)) {
		return nil
	}
	say := func() error {
		err := l.cfg.Forge.Say(ctx, i.Key, "status", body)
		if err == nil && rings {
			err = l.cfg.Forge.Say(ctx, i.Key, v.Ask, v.bell(l.cfg.Harmless))
		}
		if err != nil {
			return fmt.Errorf("telling %s on %s: %w", v.State, i.Key, err)
		}
		return nil
	}
	if !rings && (v.State == last.state || last.body != "" && v.State.label() == last.state.label()) { // an edit of our comment, which does not show on the issue
		if err := say(); err != nil {
			return err
		}
	} else if done, err := l.write(ctx, i, func() error {
		if err := say(); err != nil {
			return err
		}
		if err := l.cfg.Forge.SetState(ctx, i, v.State.label()); err != nil {
			return fmt.Errorf("setting the label for %s on %s: %w", v.State, i.Key, err)
		}
		return nil
	}); err != nil || !done {
		return err
	}
	if v.Ask == "" {
		v.Ask = last.ask
	}
	l.said[i.Key] = said{body: body, state: v.State, position: v.Position, ask: v.Ask, at: l.cfg.Uptime()}
	return nil
}

// askName names what an agent asks: the same for the same thing, also after a restart.
func askName(pod Pod, sum Summary) string {
	return askID("%d %q %q %q %q", pod.TriggerID, sum.Cause, sum.Mark, sum.Question, sum.Choices)
}

func askID(format string, about ...any) string {
	h := sha256.Sum256(fmt.Appendf(nil, format, about...))
	return "ask-" + hex.EncodeToString(h[:6])
}

// bell renders the comment that tells a person of what the agent asks. It is another
// than the status comment, whose edits the forge tells nobody of.
func (v View) bell(harmless func(string) string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "@%s\n\n", v.Labeler)
	v.writeWhy(&b, harmless)
	b.WriteString(adviceOn(v) + "\n")
	return b.String()
}
