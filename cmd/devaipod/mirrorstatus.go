package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// mirrorStatus shows what the running cache counts at /metrics.
func (a *app) mirrorStatus(ctx context.Context) error {
	families, err := a.readMetrics(ctx)
	if err != nil {
		return err
	}
	values := map[string]float64{}
	for name, f := range families {
		name, ours := strings.CutPrefix(name, "devaipod_mirror_")
		if !ours {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			key := strings.Join(append([]string{name}, labels...), " ")
			switch {
			case m.Histogram != nil:
				values[key+" count"] = float64(m.GetHistogram().GetSampleCount())
				values[key+" sum"] = m.GetHistogram().GetSampleSum()
			default:
				values[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	if a.asJSON {
		return a.printJSON(values)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	var keys []string
	for k := range values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		text := fmt.Sprintf("%.4g", values[k])
		if strings.HasSuffix(k, "bytes_total") {
			text = formatBytes(int64(values[k]))
		} else if values[k] == float64(int64(values[k])) {
			text = fmt.Sprintf("%d", int64(values[k]))
		}
		fmt.Fprintf(w, "%s\t%s\n", strings.ReplaceAll(strings.ReplaceAll(k, "_total", ""), "_", " "), text)
	}
	return w.Flush()
}

// readMetrics asks the cache that listens at service.listen.
func (a *app) readMetrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.cfg.serviceURL()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, &exitError{codeUnreachable, fmt.Errorf("no cache runs at %s (service.listen): start it with devaipod mirror serve", a.cfg.Service.Listen)}
	}
	if err != nil {
		return nil, &exitError{codeUnreachable, err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s/metrics says %s: is it devaipod that listens there?", a.cfg.serviceURL(), resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading %s/metrics: %w", a.cfg.serviceURL(), err)
	}
	return families, nil
}
