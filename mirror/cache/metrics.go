package cache

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the cache counts. Times are in seconds, sizes in bytes.
type metrics struct {
	requests  *prometheus.CounterVec
	sent      prometheus.Counter
	received  prometheus.Counter
	refreshes *prometheus.HistogramVec
	waiting   prometheus.Gauge
	reused    prometheus.Counter
	evictions prometheus.Counter
}

// How a request was answered.
const (
	resultHit       = "hit"       // young enough
	resultRefreshed = "refreshed" // after asking the upstream
	resultStale     = "stale"     // the upstream did not answer
	resultRefused   = "refused"
	resultFailed    = "failed"
)

func newMetrics(to prometheus.Registerer) (*metrics, error) {
	const ns, sub = "devaipod", "mirror"
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "requests_total",
			Help: "Requests, by what was asked for and how it was answered."}, []string{"what", "result"}),
		sent:     counter("sent_bytes_total", "Bytes sent to clients."),
		received: counter("received_bytes_total", "Bytes received from upstreams by HTTP."),
		refreshes: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: "refresh_seconds",
			Help: "Time that asking an upstream took, with the fetch where there was one.", Buckets: prometheus.ExponentialBuckets(0.01, 4, 9)}, []string{"result"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "waiting",
			Help: "Clients that wait for an upstream."}),
		reused:    counter("answers_reused_total", "Answers that had been made before for the same request."),
		evictions: counter("evictions_total", "Repositories removed to make room."),
	}
	if to == nil {
		return m, nil
	}
	var err error
	for _, c := range []prometheus.Collector{m.requests, m.sent, m.received, m.refreshes, m.waiting, m.reused, m.evictions} {
		err = errors.Join(err, to.Register(c))
	}
	return m, err
}
