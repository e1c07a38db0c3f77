package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// maxSaid bounds a message to an agent, in bytes.
const maxSaid = 1 << 20

// takenUp is how long a message may take to show in the agent's state.
const takenUp = 10 * time.Second

// say answers POST …/messages: the body is given to the agent. The answer comes when
// the agent is seen at work again, or a little later.
func (s *service) say(w http.ResponseWriter, r *http.Request, k reconcile.Key) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSaid))
	if err != nil {
		http.Error(w, "a message has at most 1 MiB", http.StatusRequestEntityTooLarge)
		return
	}
	if err := s.send(r.Context(), k, string(text)); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	for over := time.Now().Add(takenUp); time.Now().Before(over) && r.Context().Err() == nil; {
		if v, ok := s.loop.View(k); !ok || !v.State.Waits() {
			break
		}
		sleep(r.Context(), 100*time.Millisecond)
	}
	w.WriteHeader(http.StatusNoContent)
}

// send gives an agent what a person says.
func (s *service) send(ctx context.Context, k reconcile.Key, text string) error {
	if err := s.pods.control(s.loop.PodKey(k)).Send(ctx, text); err != nil {
		return fmt.Errorf("the agent on %s did not get it; does it run (devaipod status)? %w", k, err)
	}
	if err := s.pods.ForgiveRounds(s.loop.PodKey(k)); err != nil {
		s.log.Warn("the agent has its rounds of CI not again", "issue", k.String(), "err", err)
	}
	return nil
}

func (a *app) sendCmd() *cobra.Command {
	return &cobra.Command{
		Use: "send ISSUE MESSAGE|-", Short: "Say something to the agent on an issue", Args: args(cobra.ExactArgs(2)), ValidArgsFunction: a.completePods,
		Long: "Give the agent on an issue a message, or with - what standard input has. An agent at work takes\nit up at its next step.",
		RunE: func(cmd *cobra.Command, rest []string) error {
			k, err := a.issueKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			text := []byte(rest[1])
			if rest[1] == "-" {
				if text, err = io.ReadAll(io.LimitReader(a.in, maxSaid+1)); err != nil {
					return fmt.Errorf("reading the message: %w", err)
				}
			}
			if len(bytes.TrimSpace(text)) == 0 || len(text) > maxSaid {
				return usagef("a message has to have a text, of at most 1 MiB")
			}
			if _, err := a.knownView(cmd.Context(), k); err != nil {
				return err
			}
			resp, err := a.api().doBody(cmd.Context(), http.MethodPost, podPath(k)+"/messages", bytes.NewReader(text))
			if err != nil {
				return err
			}
			a.step("sent     to the agent on %s", k)
			return resp.Body.Close()
		},
	}
}

func (a *app) waitCmd() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait ISSUE", Short: "Wait until the agent on an issue needs somebody", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.completePods,
		Long: "Wait until the agent on an issue is done, asks, has failed or is stopped. The exit code is as\nrun's: 0 its work is for review, 3 it asks, 4 it was refused, 1 anything else.",
		RunE: func(cmd *cobra.Command, rest []string) error {
			k, err := a.issueKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			return a.wait(ctx, k)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after this `time`, such as 30m (0: never)")
	return a.jsonFlag(cmd)
}

func (a *app) wait(ctx context.Context, k reconcile.Key) error {
	var last reconcile.View
	for {
		v, err := a.knownView(ctx, k)
		if ctx.Err() == nil && err != nil {
			return err
		}
		if err == nil {
			a.tellChange(last, v)
			if last = v; v.State.Waits() {
				return a.outcome(v)
			}
			sleep(ctx, 300*time.Millisecond)
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &exitError{codeFailed, fmt.Errorf("the agent on %s is still %s", k, last.State)}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
