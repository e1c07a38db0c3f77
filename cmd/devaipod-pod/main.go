// Command devaipod-pod is what runs inside pods: the shim that is PID 1 of
// agent and workspace, the control container's gate and pod-api, the saver, and
// the relay beside the forge. People never call it.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	spareThreads(16)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// spareThreads makes threads that the runtime keeps for later: where a container has all
// the processes that it may, Go ends a program that wants one more (newosproc), and with
// the shim the container.
func spareThreads(n int) {
	var all sync.WaitGroup
	all.Add(n)
	for range n {
		go func() {
			runtime.LockOSThread() // so that each has one of its own
			defer runtime.UnlockOSThread()
			all.Done()
			all.Wait()
		}()
	}
	all.Wait()
}
