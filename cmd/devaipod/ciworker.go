package main

import (
	"fmt"
	"syscall"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/ci/worker"
)

// Limits of the process that runs a job, bytes: what it holds of what a job's
// containers answer, and the largest file that it writes.
const (
	workerMemory = 1 << 30
	workerFile   = 4 << 30
)

// ciWorkerCmd is the process that the service starts for each job of a workflow. The
// first SIGTERM cancels the job.
func (a *app) ciWorkerCmd() *cobra.Command {
	plan := false
	cmd := &cobra.Command{
		Use: "ci-worker", Short: "Run the job of a workflow that standard input tells of", Hidden: true, Args: args(cobra.NoArgs),
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil }, // it has no configuration
		RunE: func(cmd *cobra.Command, _ []string) error {
			for what, n := range map[int]uint64{syscall.RLIMIT_DATA: workerMemory, syscall.RLIMIT_FSIZE: workerFile, syscall.RLIMIT_CORE: 0} {
				if err := syscall.Setrlimit(what, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
					return fmt.Errorf("limiting this process: %w", err)
				}
			}
			if plan {
				return worker.Plan(cmd.Context(), a.in, a.out)
			}
			return worker.Main(cmd.Context(), a.in, a.out)
		},
	}
	cmd.Flags().BoolVar(&plan, "plan", plan, "say which jobs workflows have, and run none")
	return cmd
}
