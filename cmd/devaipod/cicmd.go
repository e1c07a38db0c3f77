package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/ci"
)

func (a *app) ciCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ci", Short: "Run workflows, and see the jobs that the service ran", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.ciListCmd(), a.ciLogsCmd(), a.ciRunCmd(), a.ciCacheCmd(), a.ciApproveCmd(), a.ciCancelCmd(), a.ciRerunCmd(), a.ciImagesCmd(), a.ciExternalCmd())
	return cmd
}

// ciActCmd is a command that has the service do something with a job.
func (a *app) ciActCmd(what, short, long, done string) *cobra.Command {
	return &cobra.Command{
		Use: what + " JOB", Short: short, Long: long, Args: args(cobra.ExactArgs(1)), Example: "  devaipod ci " + what + " 12",
		RunE: func(cmd *cobra.Command, args []string) error {
			job, err := jobNumber(args[0])
			if err != nil {
				return err
			}
			if err := a.api().post(cmd.Context(), fmt.Sprintf("/api/ci/%d/%s", job, what)); err != nil {
				return err
			}
			a.step("%s", fmt.Sprintf(done, job))
			return nil
		},
	}
}

func (a *app) ciApproveCmd() *cobra.Command {
	return a.ciActCmd("approve", "Let the jobs of a commit have what they ask for",
		`Approve the commit of a job that ended as "needs approval": what its runs asked for (secrets, a
token that may write) they are given, and they are run again. Look at the commit first: its code runs
with them. A comment with the line "/approve-ci COMMIT", by somebody who may push, does the same.
A commit that changes workflows, compared with the default branch, can't be approved.`,
		"approved the commit of job %d: its runs are run again")
}

func (a *app) ciCancelCmd() *cobra.Command {
	return a.ciActCmd("cancel", "Cancel the run of a job",
		"Cancel all jobs of a job's run that have not ended, as the forge's page does.", "cancelled the run of job %d")
}

func (a *app) ciRerunCmd() *cobra.Command {
	return a.ciActCmd("rerun", "Run the run of a job again",
		"Run all jobs of a job's run again, as the forge's page does.", "the run of job %d is run again")
}

// jobNumber reads the number of a job.
func jobNumber(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return 0, usagef("%q: want the number of a job; devaipod ci list has them", text)
	}
	return n, nil
}

// jobRunning is the result of a job that has none.
const jobRunning = "running"

func (a *app) ciListCmd() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "list", Short: "List the jobs, the newest first", Args: noArgs,
		Long: "List the jobs of workflows that the service ran (ci.runner), the newest first: the number of the\njob (devaipod ci logs), its repository and run, how far it was trusted, and what came of it. Those that\nbegin with a d are detected checks (ci.detect).",
		RunE: func(*cobra.Command, []string) error {
			jobs, err := a.ciJobs()
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(jobs)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "JOB\tREPOSITORY\tRUN\tNAME\tCOMMIT\tTIER\tRESULT\tAGE")
			for _, j := range jobs {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.10s\t%s\t%s\t%s\n", numberOf(j), visible([]byte(j.Repo)), visible([]byte(j.Run)), visible([]byte(j.Job)), visible([]byte(j.Commit)), j.Tier, cmp.Or(j.Result, jobRunning), age(j.Started))
			}
			return w.Flush()
		},
	})
}

// numberOf names a job: detected checks are numbered by themselves.
func numberOf(j ci.Record) string {
	if j.Event == detectEvent {
		return fmt.Sprintf("d%d", j.Task)
	}
	return fmt.Sprint(j.Task)
}

// ciJobs are the jobs that run, and those that ended.
func (a *app) ciJobs() ([]ci.Record, error) {
	jobs := []ci.Record{}
	for _, store := range []*ci.Store{ci.OpenStore(a.cfg.file("ci")), a.detectedStore()} {
		running, err := store.Running()
		if err != nil {
			return nil, err
		}
		for _, info := range running {
			jobs = append(jobs, ci.Record{Info: info, Result: jobRunning})
		}
		ended, err := store.List()
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, ended...)
	}
	return jobs, nil
}

func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return shortTime(time.Since(t))
}

func (a *app) ciLogsCmd() *cobra.Command {
	follow := false
	cmd := &cobra.Command{
		Use: "logs JOB", Short: "Print the log of a job", Args: args(cobra.ExactArgs(1)),
		Example: "  devaipod ci logs 12\n  devaipod ci logs -f 12",
		RunE: func(cmd *cobra.Command, args []string) error {
			store, number := ci.OpenStore(a.cfg.file("ci")), args[0]
			if n, detected := strings.CutPrefix(number, "d"); detected {
				store, number = a.detectedStore(), n
			}
			id, err := jobNumber(number)
			if err != nil {
				return err
			}
			return a.ciLogs(cmd.Context(), store, id, follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", follow, "go on until the job ends")
	return cmd
}

// ciLogs prints a job's log, without its times and without what would steer a terminal.
func (a *app) ciLogs(ctx context.Context, store *ci.Store, id int64, follow bool) error {
	f, err := os.Open(store.LogFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no log of a job %d: devaipod ci list has those that are kept", id)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r, part := bufio.NewReader(f), ""
	for {
		over := true
		if follow {
			_, err := store.Get(id) // before what was written last is read
			if over = err == nil; !over && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for {
			line, err := r.ReadString('\n')
			part += line
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			_, text, _ := strings.Cut(strings.TrimSuffix(part, "\n"), " ")
			part = ""
			if _, err := fmt.Fprintln(a.out, visible([]byte(text))); err != nil {
				return err
			}
		}
		if over {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(300 * time.Millisecond):
		}
	}
}
