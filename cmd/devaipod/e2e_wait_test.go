package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// again runs another command of ours, or a program.
func (c *call) again(args []string) (string, error) {
	if f, ok := commands()[args[0]]; ok {
		inner := &call{suite: c.suite, ts: c.ts, args: slices.Clone(args[1:])}
		err := f(inner)
		return inner.out.String(), err
	}
	var out bytes.Buffer
	call := testkit.Call{Args: args[1:], Env: []string{"DEVAIPOD_CONFIG=" + c.env("DEVAIPOD_CONFIG")}, Stdout: &out, Stderr: &out}
	if args[0] != "devaipod" {
		return "", fmt.Errorf("no command %q", args[0])
	}
	err := c.Run(c.ctx, call)
	return out.String(), err
}

func (c *call) waitfor() error {
	if len(c.args) < 2 {
		return errors.New("usage: waitfor PATTERN COMMAND ARG…")
	}
	want, err := regexp.Compile("(?ms)" + c.args[0])
	if err != nil {
		return err
	}
	var got string
	err = c.until(want.String(), func() (bool, error) {
		var e error
		got, e = c.again(c.args[1:])
		return want.MatchString(got), e
	})
	c.printf("%s", got)
	return err
}

func (c *call) always() error {
	if len(c.args) < 3 {
		return errors.New("usage: always DURATION PATTERN COMMAND ARG…")
	}
	d, err := time.ParseDuration(c.args[0])
	if err != nil {
		return err
	}
	want, err := regexp.Compile("(?ms)" + c.args[1])
	if err != nil {
		return err
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		got, err := c.again(c.args[2:])
		if err != nil {
			return err
		}
		if !want.MatchString(got) {
			return fmt.Errorf("not always %s: %s", want, got)
		}
		if err := pause(c.ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// until asks cond until it holds, for five minutes (a machine may be slow); its
// errors are passing ones until then. What has taken long already is asked more seldom: a
// question may cost the forge as much as what is waited for.
func (c *call) until(what string, cond func() (bool, error)) error {
	const limit = 5 * time.Minute
	start := time.Now()
	for end := start.Add(limit); ; {
		ok, err := cond()
		if ok && err == nil {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(err, fmt.Errorf("waited %s in vain for %s", limit, what))
		}
		if err := pause(c.ctx, min(max(time.Since(start)/15, 200*time.Millisecond), 2*time.Second)); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
