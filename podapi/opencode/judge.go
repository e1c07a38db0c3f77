package opencode

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

// judge works out the state from opencode's status, its last message, and the
// model's traffic at the gate.
func (d *Driver) judge(ctx context.Context, s session, all []message, st sessionStatus, ask asked) error {
	last := all[len(all)-1]
	sum := podapi.Summary{State: podapi.Working, Session: s.ID, Activity: activity(last), Message: podapi.Clip(lastWords(all), 32<<10), Mark: podapi.Line(last.Info.ID, 100)}
	switch {
	case ask.text != "":
		sum.State, sum.Cause, sum.Question, sum.Choices = podapi.Asking, ask.cause, ask.text, ask.choices
		sum.Mark = podapi.Line(fmt.Sprint(ask.id, " ", ask.more), 100)
	case st.Type == "retry":
		sum.Activity = podapi.Line(fmt.Sprintf("the model is asked again (try %d): %s", st.Attempt, st.Message), 300)
	case st.Type != "", d.cfg.Traffic().InFlight > 0:
		// busy
	default:
		// It says that it is idle; its model has to be, too.
		if got := d.cfg.Traffic().Received; d.idleSince.IsZero() || got != d.received {
			d.idleSince, d.received = time.Now(), got
		}
		if time.Since(d.idleSince) >= podapi.Settle {
			return d.over(ctx, sum, all)
		}
		if d.status.Get().State == podapi.Starting { // a turn that was over before we were here is not at work
			sum.State = podapi.Starting
		}
		d.status.Set(sum)
		return nil
	}
	if !d.idleSince.IsZero() { // another turn
		d.idleSince, d.gaveUp = time.Time{}, ""
	}
	// opencode itself gives up on errors after some tries, and on answers that break
	// off never: it asks again at once.
	if t := d.cfg.Traffic(); sum.State == podapi.Working && d.failing.Hopeless(t, d.cfg.Stall) {
		d.gaveUp = fmt.Sprintf("the model failed %d times in a row; the last time: %s", t.Failures, t.LastError)
		d.status.Set(sum)
		return d.api.abort(ctx, sum.Session)
	}
	if sum.State == podapi.Working {
		return d.progress(ctx, sum, all)
	}
	d.pulse.Reset() // it waits for a person
	d.status.Set(sum)
	return nil
}

// progress looks whether a busy turn moves. One that does not is broken off and
// asked to go on, once; the second time it is given up.
func (d *Driver) progress(ctx context.Context, sum podapi.Summary, all []message) error {
	if d.pulse.Still(fmt.Sprint(d.cfg.Traffic().Received, " ", size(all), " ", d.cfg.Computes())) < d.cfg.Stall {
		d.status.Set(sum)
		return nil
	}
	if d.urged {
		sum.State, sum.Cause = podapi.Failed, podapi.CauseStalled
		sum.Error = fmt.Sprintf("the agent made no progress for %s, and has been asked to go on once before; it was at: %s", d.cfg.Stall, sum.Activity)
		d.status.Set(sum)
		return nil
	}
	d.cfg.Journal.Add(podapi.EventError, fmt.Sprintf("no progress for %s; breaking off and asking the agent to go on", d.cfg.Stall))
	d.status.Set(sum)
	if err := d.api.abort(ctx, sum.Session); err != nil {
		return err
	}
	d.urged = true
	d.pulse.Reset()
	return d.prompt(ctx, all, fmt.Sprintf("There was no progress for %s, so what was running has been broken off. Go on with the task in another way, and push your work when it is done.", d.cfg.Stall))
}

// size changes with all that an agent does.
func size(all []message) (n int) {
	for _, m := range all {
		n++
		for _, p := range m.Parts {
			n += 1 + len(p.Text)
			if p.State != nil {
				n += len(p.State.Status) + len(p.State.Output) + len(p.State.Error)
			}
		}
	}
	return n
}

// over judges a turn that has ended, by its last message.
func (d *Driver) over(ctx context.Context, sum podapi.Summary, all []message) error {
	last := all[len(all)-1]
	sum.Activity, d.failing = "", podapi.Failing{}
	switch {
	case d.gaveUp != "":
		sum.State, sum.Cause, sum.Error = podapi.Failed, podapi.CauseModel, d.gaveUp
	case last.Info.Error != nil && last.Info.Error.Data.StatusCode == http.StatusPaymentRequired:
		return d.spent(ctx, sum, all)
	case last.Info.Error != nil:
		sum.State, sum.Cause, sum.Error = podapi.Failed, d.cfg.Traffic().Cause(last.Info.Error.Data.StatusCode), podapi.Clip(d.why(last), 4<<10)
	case last.Info.Role == "user" || last.interrupted() || last.Info.Finish == "tool-calls":
		// Nobody works on it: opencode was killed in the middle.
		if d.nudged {
			sum.State, sum.Cause, sum.Error = podapi.Failed, podapi.CauseInterrupted, "the agent's turn was interrupted and did not go on when it was asked to"
			break
		}
		d.cfg.Journal.Add(podapi.EventError, "the turn was interrupted; asking the agent to go on")
		sum.Activity = "going on after an interruption"
		d.status.Set(sum)
		err := d.prompt(ctx, all, "You were interrupted. Go on with the task from where you were, and push your work when it is done.")
		d.nudged = err == nil
		return err
	default:
		sum.State, d.nudged = podapi.Done, false
	}
	d.status.Set(sum)
	return nil
}

// spent judges a turn that ended because the gate had no budget left for it. It
// goes on once there is some.
func (d *Driver) spent(ctx context.Context, sum podapi.Summary, all []message) error {
	if why := d.cfg.Traffic().Spent; why != "" {
		sum.State, sum.Cause, sum.Question = podapi.Asking, podapi.CauseBudget, "The budget is used up: "+why+"."
		d.status.Set(sum)
		return nil
	}
	d.cfg.Journal.Add(podapi.EventText, "there is budget again; asking the agent to go on")
	d.status.Set(sum)
	return d.prompt(ctx, all, "The budget for the model was used up and has been raised. Go on with the task from where you were, and push your work when it is done.")
}

// why tells of a failed turn; the gate knows the model's own words.
func (d *Driver) why(last message) string {
	text := last.Info.Error.Name
	if m := last.Info.Error.Data.Message; m != "" {
		text = m
	}
	if t := d.cfg.Traffic(); t.LastError != "" {
		return t.LastError
	}
	return text
}

// lastWords is the newest text of the agent.
func lastWords(all []message) string {
	for i := len(all) - 1; i >= 0; i-- {
		if text := strings.TrimSpace(all[i].text()); text != "" && all[i].Info.Role == "assistant" {
			return text
		}
	}
	return ""
}

// activity says in a line what a message is busy with.
func activity(m message) string {
	for i := len(m.Parts) - 1; i >= 0; i-- {
		switch p := m.Parts[i]; {
		case p.Type == "tool" && p.State != nil:
			return podapi.Line(p.Tool+" "+p.input(), 200)
		case p.Type == "text" && p.Text != "":
			return podapi.Line(p.Text, 200)
		case p.Type == "reasoning":
			return "thinking"
		}
	}
	return "waiting for the model"
}

// input is what a tool was called with, the telling part of it.
func (p part) input() string {
	if told := podapi.Telling(p.State.Input); told != "" {
		return told
	}
	return p.State.Title
}
