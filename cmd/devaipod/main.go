// Command devaipod runs a local forge and the service beside it that turns
// labeled issues into sandboxed agent pods. `devaipod help` lists what it can
// do; docs/ in the repository tells how.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(err))
}
