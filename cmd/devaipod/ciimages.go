package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	ciimages "codeberg.org/devaipod/devaipod/ci/images"
	cijob "codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/compose"
	"codeberg.org/devaipod/devaipod/mirror/gitproc"
	"codeberg.org/devaipod/devaipod/pods"
)

// ownCIImage is the image for jobs that the service builds itself, where ci.images names it.
const ownCIImage = "localhost/devaipod/ci:latest"

// newCIImages makes what has the images of jobs here: before a job asks for them, unless
// nobody said that there are to be jobs, and there has never been one.
func (s *service) newCIImages(a *app, labels map[string]string) (*ciimages.Set, error) {
	jobs, err := a.ciJobs()
	if err != nil {
		return nil, err
	}
	own := &ownImage{manager: s.pods.manager, dir: a.cfg.file("ci/recipes"), podman: a.podmanURI, warn: func(err error) {
		a.log.Warn("the image for jobs is not brought up to date", "image", ownCIImage, "err", err)
	}}
	return ciimages.New(ciimages.Config{Labels: labels, Later: a.cfg.CI.Runner == runnerAuto && len(jobs) == 0, Preparing: pods.ErrPreparing, Log: a.log, Have: func(ctx context.Context, image string) error {
		if image == ownCIImage {
			return own.have(ctx)
		}
		return s.pods.manager.Have(ctx, image, nil)
	}}), nil
}

// An ownImage is built by compose/images/build, of which this program has a copy.
type ownImage struct {
	manager *pods.Manager
	dir     string // for that copy
	podman  string // its address
	warn    func(error)

	mu     sync.Mutex
	tended bool // it was looked at whether what is here is of this program's recipe
}

// have has it here: of our recipe, or else, where that does not work, an older one.
func (o *ownImage) have(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := o.manager.Have(ctx, ownCIImage, o.load)
	if err != nil || o.tended {
		return err
	}
	switch err = o.manager.Renew(ctx, ownCIImage, o.load); {
	case errors.Is(err, pods.ErrPreparing) || ctx.Err() != nil:
		return err
	case err != nil:
		o.warn(err)
	}
	o.tended = true
	return nil
}

// load builds it unless the cache has it, and has podman import it unless it is there.
func (o *ownImage) load(ctx context.Context, say io.Writer) error {
	recipes, err := fs.Sub(compose.Recipes, "images")
	if err != nil {
		return err
	}
	if err := os.RemoveAll(o.dir); err != nil { // of an older one, or a kill
		return err
	}
	defer os.RemoveAll(o.dir) //nolint:errcheck // the next one does, and tells
	if err := os.CopyFS(o.dir, recipes); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "bash", filepath.Join(o.dir, "build"), "load", "ci", ownCIImage, "--", "--remote", "--url", o.podman)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = workerGrace
	last := &gitproc.Tail{Max: 2 << 10}
	out := io.MultiWriter(last, say)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(last.Bytes)), "\n")
		return fmt.Errorf("building it: %w: %s", err, plain(lines[len(lines)-1], 500))
	}
	return nil
}

// waitForImages returns when those that a job's labels stand for are here.
func (c *ciRunner) waitForImages(ctx context.Context, workflow []byte, events func(cijob.Event)) error {
	if c.ready == nil { // a local run: they are had when they are asked for
		return nil
	}
	wanted, err := labelsOf(workflow)
	if err != nil {
		return err
	}
	for _, label := range wanted {
		image := c.images[label]
		if image == "" {
			continue
		}
		err := c.ready.Wait(ctx, image, func(line string) {
			events(cijob.Event{Time: time.Now(), Step: cijob.SetUp, Line: &line})
		})
		if err != nil {
			return fmt.Errorf("the image of runs-on: %.100s: %w", label, err)
		}
	}
	return nil
}

// labelsOf are what the one job in a workflow has in runs-on, none if it brings an image
// of its own.
func labelsOf(workflow []byte) ([]string, error) {
	var w struct {
		Jobs map[string]struct {
			RunsOn    yaml.Node `yaml:"runs-on"`
			Container yaml.Node `yaml:"container"`
		} `yaml:"jobs"`
	}
	if err := yaml.Unmarshal(workflow, &w); err != nil {
		return nil, fmt.Errorf("reading the workflow: %w", err)
	}
	var labels []string
	for _, j := range w.Jobs {
		var one string
		var several []string
		if own := !j.Container.IsZero() && j.Container.Tag != "!!null"; own || j.RunsOn.IsZero() {
			continue
		}
		if j.RunsOn.Decode(&one) == nil {
			several = []string{one}
		} else if err := j.RunsOn.Decode(&several); err != nil {
			continue // what runs the job says what is wrong with it
		}
		labels = append(labels, several...)
	}
	return labels, nil
}

func (s *service) serveCIImages(w http.ResponseWriter, _ *http.Request) {
	all := []ciimages.Image{}
	if s.ci != nil {
		all = s.ci.ready.All()
	}
	s.json(w, all)
}

func (a *app) ciImagesCmd() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "images", Short: "Tell whether the images of jobs are here", Args: noArgs,
		Long: "Tell of each label of runs-on (ci.images) which image it stands for and whether that is on this\nmachine. The service fetches or builds those that are not, and looks again now and then.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []ciimages.Image
			if err := a.api().get(cmd.Context(), "/api/ci/images", &all); err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(all)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "LABEL\tIMAGE\tSTATE\tWHY")
			for _, i := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", visible([]byte(i.Label)), visible([]byte(i.Image)), i.State, plain(i.Why, 500))
			}
			return w.Flush()
		},
	})
}
