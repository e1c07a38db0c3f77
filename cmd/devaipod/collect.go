package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
)

// collectEvery is how often the service looks for what has no owner. It does so at
// its start too.
const collectEvery = time.Hour

func pruneDefaults() map[string]any {
	return map[string]any{"prune.image_age": "720h", "prune.disk_watermark": "90%", "prune.record_age": "0s"}
}

// pruneLimits are [prune] of the configuration.
func (c config) pruneLimits(dry bool) (pods.Limits, error) {
	percent, ok := strings.CutSuffix(c.Prune.DiskWatermark, "%")
	n, err := strconv.Atoi(percent)
	if !ok || err != nil || n < 0 || n > 100 {
		return pods.Limits{}, fmt.Errorf("prune.disk_watermark = %q: want a part of the disk, like 90%%, or 0%% for no limit", c.Prune.DiskWatermark)
	}
	return pods.Limits{ImageAge: c.Prune.ImageAge, Watermark: float64(n) / 100, RecordAge: c.Prune.RecordAge, Dry: dry}, nil
}

func (c config) validatePrune() error {
	if c.Prune.ImageAge < 0 {
		return fmt.Errorf("prune.image_age = %q: want 0s (no limit) or more", c.Prune.ImageAge)
	}
	if c.Prune.RecordAge < 0 {
		return fmt.Errorf("prune.record_age = %q: want 0s (for ever) or more", c.Prune.RecordAge)
	}
	_, err := c.pruneLimits(false)
	return err
}

// collect removes what has no owner. Nothing else may make or remove pods meanwhile.
func (s *service) collect(ctx context.Context, dry bool) (pods.Collected, error) {
	lim, err := s.cfg.pruneLimits(dry)
	if err != nil {
		return pods.Collected{}, err
	}
	return s.pods.manager.Collect(ctx, lim)
}

// collectAll does so now and then.
func (s *service) collectAll(ctx context.Context) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var err error
		if e := s.loop.Between(ctx, func() { _, err = s.collect(ctx, false) }); e != nil {
			return
		}
		if err != nil {
			s.log.Warn("removing what has no owner; it is tried again later", "err", err)
		}
	}
}

// prune answers POST /api/prune.
func (s *service) prune(w http.ResponseWriter, r *http.Request) {
	var did pods.Collected
	var err error
	if e := s.loop.Between(r.Context(), func() { did, err = s.collect(r.Context(), r.URL.Query().Get("dry") == "true") }); e != nil {
		err = e
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.json(w, did)
}

// pruneThings has the service remove what has no owner. Where none runs the next one
// does, at its start.
func (a *app) pruneThings(ctx context.Context, dry bool) (pods.Collected, error) {
	did, err := a.api().prune(ctx, dry)
	var exit *exitError
	if errors.As(err, &exit) && exit.code == codeUnreachable {
		a.step("the service does not run: what pods have left goes when it starts")
		err = nil
	}
	return did, err
}

func (c *apiClient) prune(ctx context.Context, dry bool) (did pods.Collected, err error) {
	resp, err := c.do(ctx, http.MethodPost, fmt.Sprintf("/api/prune?dry=%t", dry))
	if err != nil {
		return did, err
	}
	defer resp.Body.Close()
	return did, json.NewDecoder(resp.Body).Decode(&did)
}
