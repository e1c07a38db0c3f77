// Command devaipod-pod is what runs inside pods: the shim that is PID 1 of
// agent and workspace, the control container's gate and pod-api, the saver, and
// the relay beside the forge. People never call it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
