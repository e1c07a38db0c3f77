package pods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/witness"
)

// What an issue's agents did is kept beside its account, and outlives their pods:
// the transcript (podapi), the commands that the gate saw (pods/witness), and below
// these two folders, by commit, what came of our own checks and the evidence that a
// pull request left draft with.
const (
	ChecksFolder   = "checks"
	EvidenceFolder = "evidence"
)

// recordNames are all of these.
var recordNames = []string{podapi.TranscriptFile, podapi.TranscriptFile + ".1", witness.FileName, witness.FileName + ".1", ChecksFolder, EvidenceFolder}

// RemoveRecords removes what is kept in a directory of what agents did, but for the
// account of what they used.
func RemoveRecords(dir string) error {
	var errs []error
	for _, name := range recordNames {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// newestRecord is when something was last added to what is kept in a directory; zero
// when nothing is.
func newestRecord(dir string) (newest time.Time, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || path == dir {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if first, _, _ := strings.Cut(rel, "/"); !slices.Contains(recordNames, first) {
			return nil
		}
		info, err := d.Info()
		if err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	return newest, err
}

// records removes what agents did whose pods have been gone for long. While a
// specification can't be read nobody knows whose is still there, and none is removed.
func (c *collection) records(context.Context) error {
	if c.lim.RecordAge <= 0 {
		return nil
	}
	specs, err := c.specs()
	if err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(c.cfg.StateDir, usageDir, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		if slices.ContainsFunc(specs, func(s Spec) bool { return c.UsageDir(s.Key) == dir }) {
			continue
		}
		newest, err := newestRecord(dir)
		if err == nil && !newest.IsZero() && time.Since(newest) >= c.lim.RecordAge {
			err = c.remove("what the agents of "+filepath.Base(dir)+" did", func() error { return RemoveRecords(dir) })
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("looking how old what is kept in %s is: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}
