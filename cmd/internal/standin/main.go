// Standin is a stand-in for a runner of the forge's Actions, for tests (package brokertest). It
// reads the variables that the container of act_runner reads.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/ci/broker/brokertest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "standin:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	token, err := os.ReadFile(os.Getenv("GITEA_RUNNER_REGISTRATION_TOKEN_FILE"))
	if err != nil {
		return err
	}
	var labels []string
	for l := range strings.SplitSeq(os.Getenv("GITEA_RUNNER_LABELS"), ",") {
		name, _, _ := strings.Cut(l, ":")
		labels = append(labels, name)
	}
	for ; ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
		r, err := brokertest.Register(ctx, os.Getenv("GITEA_INSTANCE_URL"), strings.TrimSpace(string(token)), os.Getenv("GITEA_RUNNER_NAME"), labels...)
		if err != nil {
			fmt.Fprintln(os.Stderr, "standin: registering, again:", err)
			continue
		}
		if err := r.Serve(ctx); ctx.Err() == nil {
			return err
		}
	}
	return nil
}
