package acp

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/coder/acp-go-sdk"

	"codeberg.org/devaipod/devaipod/podapi"
)

// A turn is one prompt and what comes of it.
type turn struct {
	d       *Driver
	p       *peer
	session string
	answer  <-chan message // of the prompt

	received  int64     // of the model, before
	ended     *message  // the answer, once it is there
	idleSince time.Time // since when all signals say that the turn is over
	pulse     podapi.Pulse
	failing   podapi.Failing
	// cancelled is when the agent was told to end the turn, and then what it is to be.
	cancelled time.Time
	then      podapi.Summary
	goOn      string // what it is told next in place of an end
}

// turn gives the agent a prompt and looks on until it has ended. An error is the end
// of its process, or a reason for it.
func (d *Driver) turn(ctx context.Context, p *peer, text string) error {
	t := &turn{d: d, p: p, session: d.cfg.Book.Page().Session}
	for text != "" {
		*t = turn{d: d, p: p, session: t.session, received: d.cfg.Traffic().Received}
		d.reset(&view{session: t.session, activity: "waiting for the model"})
		d.cfg.Book.Change(func(p *podapi.Page) { p.Taken = true })
		d.status.Set(podapi.Summary{State: podapi.Working, Session: t.session, Activity: "reading its message"})
		var err error
		t.answer, err = p.ask(acp.AgentMethodSessionPrompt, acp.PromptRequest{SessionId: acp.SessionId(t.session), Prompt: []acp.ContentBlock{acp.TextBlock(text)}})
		if err != nil {
			return err
		}
		if err := t.watch(ctx); err != nil {
			return err
		}
		text = t.goOn
	}
	return nil
}

// watch looks at all signals until the turn is over.
func (t *turn) watch(ctx context.Context) error {
	tick := time.NewTicker(t.d.cfg.Poll)
	defer tick.Stop()
	for {
		answer := t.answer
		if t.ended != nil {
			answer = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-answer:
			t.ended = &m
		case <-t.p.done:
			return t.gone()
		case <-t.d.wake:
		case <-tick.C:
		}
		if over, err := t.look(); over || err != nil {
			return err
		}
	}
}

// gone judges a turn whose agent has gone: one that was to end has done so.
func (t *turn) gone() error {
	if !t.cancelled.IsZero() && t.goOn == "" {
		t.d.over(t.then)
		return nil
	}
	return errGone
}

// look works out the state; over when the turn has ended.
func (t *turn) look() (over bool, err error) {
	d, traffic := t.d, t.d.cfg.Traffic()
	d.mu.Lock()
	v := &d.view
	sum := podapi.Summary{State: podapi.Working, Session: t.session, Activity: v.activity, Message: podapi.Clip(v.message.String(), maxMessage), Todo: v.todo}
	if sum.Activity == "" {
		sum.Activity = podapi.Line(podapi.Clip(sum.Message, 1000), 200)
	}
	if len(v.asks) > 0 && t.ended == nil {
		sum.State, sum.Cause, sum.Question, sum.Choices = podapi.Asking, podapi.CausePermission, v.asks[0].question, v.asks[0].choices
		sum.Mark = fmt.Sprintf("%s of %s", v.asks[0].mark, t.session)
	}
	mark, stop := fmt.Sprint(traffic.Received, " ", v.updates, " ", d.cfg.Computes()), d.stop
	d.mu.Unlock()
	if !t.cancelled.IsZero() {
		return t.ending(sum)
	}
	still := t.pulse.Still(mark)
	if t.ended != nil {
		// The agent says that it is idle; its model has to be, too.
		if traffic.InFlight > 0 {
			t.idleSince = time.Time{}
		} else if t.idleSince.IsZero() {
			t.idleSince = time.Now()
		}
		if !t.idleSince.IsZero() && min(time.Since(t.idleSince), still) >= podapi.Settle {
			d.over(t.judge(sum, traffic))
			return true, nil
		}
	}
	stalled := still >= d.cfg.Stall && (t.ended == nil || traffic.InFlight > 0)
	if sum.State == podapi.Asking {
		t.pulse.Reset() // it waits for a person
	}
	switch {
	case stop:
		sum.State, sum.Cause, sum.Error = podapi.Failed, podapi.CauseError, "the turn was ended by a person"
		return t.cancel(sum, "")
	case sum.State == podapi.Asking:
	case t.failing.Hopeless(traffic, d.cfg.Stall):
		sum.State, sum.Cause = podapi.Failed, podapi.CauseModel
		sum.Error = fmt.Sprintf("the model failed %d times in a row; the last time: %s", traffic.Failures, traffic.LastError)
		return t.cancel(sum, "")
	case stalled && d.urged:
		sum.State, sum.Cause = podapi.Failed, podapi.CauseStalled
		sum.Error = fmt.Sprintf("the agent made no progress for %s, and has been asked to go on once before; it was at: %s", d.cfg.Stall, sum.Activity)
		return t.cancel(sum, "")
	case stalled:
		d.urged = true
		d.cfg.Journal.Add(podapi.EventError, fmt.Sprintf("no progress for %s; breaking off and asking the agent to go on", d.cfg.Stall))
		return t.cancel(sum, fmt.Sprintf("There was no progress for %s, so what was running has been broken off. Go on with the task in another way, and push your work when it is done.", d.cfg.Stall))
	}
	d.status.Set(sum)
	return false, nil
}

// cancel tells the agent to end its turn; then it is as sum says, or is told to go on.
func (t *turn) cancel(sum podapi.Summary, goOn string) (over bool, err error) {
	t.cancelled, t.then, t.goOn = time.Now(), sum, goOn
	if t.ended == nil {
		err = t.p.notify(acp.AgentMethodSessionCancel, acp.CancelNotification{SessionId: acp.SessionId(t.session)})
	}
	// As the protocol wants it, what it asked is answered with the end, too.
	t.d.mu.Lock()
	asks := t.d.view.asks
	t.d.view.asks = nil
	t.d.mu.Unlock()
	for _, a := range asks {
		a.answer(acp.NewRequestPermissionOutcomeCancelled())
	}
	if err != nil {
		return false, t.gone()
	}
	return t.ending(sum)
}

// ending waits for the end of a turn that is to end. An agent that does not care is
// ended itself, and asked to go on in its next process as after an interruption.
func (t *turn) ending(sum podapi.Summary) (over bool, err error) {
	late := time.Since(t.cancelled) > min(cancelWithin, t.d.cfg.Stall)
	switch {
	case t.ended == nil && !late:
		sum.State = podapi.Working
		t.d.status.Set(sum)
		return false, nil
	case t.goOn != "" && t.ended != nil:
		return true, nil
	case t.goOn != "":
		return false, fmt.Errorf("ending the agent, which does not end its turn: %w", errGone)
	}
	t.d.over(t.then)
	if late {
		return false, fmt.Errorf("ending the agent, which does not end its turn: %w", errGone)
	}
	return true, nil
}

// judge judges a turn that has ended by itself.
func (t *turn) judge(sum podapi.Summary, traffic podapi.Traffic) podapi.Summary {
	t.d.mu.Lock()
	t.d.flush()
	t.d.mu.Unlock()
	sum.Activity, sum.State = "", podapi.Failed
	var said acp.PromptResponse
	wrong := t.ended.Error
	if wrong == nil && json.Unmarshal(t.ended.Result, &said) != nil {
		wrong = acp.NewInternalError("no stop reason")
	}
	switch {
	case traffic.Spent != "":
		sum.State, sum.Cause, sum.Question = podapi.Asking, podapi.CauseBudget, "The budget is used up: "+traffic.Spent+"."
	case traffic.LastError != "" && (wrong != nil || traffic.Received == t.received || traffic.Failures >= 3):
		// Whatever it says: it had no answer of the model's. One question in between
		// may go wrong, an agent asks others than those that matter.
		sum.Cause, sum.Error = traffic.Cause(0), traffic.LastError
	case wrong != nil:
		sum.Cause, sum.Error = podapi.CauseError, podapi.Clip(refused(wrong).Error(), 4<<10)
	case said.StopReason == acp.StopReasonRefusal:
		sum.Cause, sum.Error = podapi.CauseRefused, "the model refuses to go on"
	case said.StopReason == acp.StopReasonEndTurn:
		sum.State = podapi.Done
	default:
		sum.Cause, sum.Error = podapi.CauseError, "the agent ended its turn early: "+podapi.Line(string(said.StopReason), 100)
	}
	return sum
}
