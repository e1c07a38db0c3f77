package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// podCount tells at /metrics how many issues' agents are in each state. Which they are
// it does not tell: everybody on this machine may ask. What a pod itself counts is at its
// own pod-api.
type podCount struct{ views func() []reconcile.View }

var podsDesc = prometheus.NewDesc("devaipod_pods", "Issues with an agent, by its state.", []string{"state"}, nil)

// Describe implements [prometheus.Collector].
func (podCount) Describe(to chan<- *prometheus.Desc) { to <- podsDesc }

// Collect implements [prometheus.Collector].
func (p podCount) Collect(to chan<- prometheus.Metric) {
	in := map[reconcile.State]int{}
	for _, st := range []reconcile.State{reconcile.Queued, reconcile.Starting, reconcile.Working, reconcile.Asking, reconcile.Review, reconcile.Failed, reconcile.Stopped, reconcile.Done, reconcile.Refused} {
		in[st] = 0
	}
	for _, v := range p.views() {
		in[v.State]++
	}
	for st, n := range in {
		to <- prometheus.MustNewConstMetric(podsDesc, prometheus.GaugeValue, float64(n), string(st))
	}
}
