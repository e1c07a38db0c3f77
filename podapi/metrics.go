package podapi

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// states are what /metrics tells of the agent, one series each.
var states = []State{Starting, Ready, Working, Asking, IdleWithWork, IdleWithout, Failed}

// The metrics of an agent.
var (
	stateDesc    = prometheus.NewDesc("devaipod_agent_state", "1 for the state that the agent is in.", []string{"state"}, nil)
	requestsDesc = prometheus.NewDesc("devaipod_model_requests_total", "Requests to the model since the gate started.", nil, nil)
	inFlightDesc = prometheus.NewDesc("devaipod_model_requests_in_flight", "Requests that the model has not answered whole.", nil, nil)
	blockedDesc  = prometheus.NewDesc("devaipod_blocked_hosts", "Hosts that the gate refuses and that were asked for.", nil, nil)
)

// metrics is the pod-api in the text format of Prometheus.
func metrics(d Driver) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), agentMetrics{d})
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// agentMetrics are of one summary each time.
type agentMetrics struct{ Driver }

// Describe implements [prometheus.Collector].
func (agentMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{stateDesc, requestsDesc, inFlightDesc, blockedDesc} {
		to <- d
	}
}

// Collect implements [prometheus.Collector].
func (m agentMetrics) Collect(to chan<- prometheus.Metric) {
	sum := m.Summary()
	for _, st := range states {
		is := 0.0
		if sum.State == st {
			is = 1
		}
		to <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, is, string(st))
	}
	to <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(sum.Model.Requests))
	to <- prometheus.MustNewConstMetric(inFlightDesc, prometheus.GaugeValue, float64(sum.Model.InFlight))
	to <- prometheus.MustNewConstMetric(blockedDesc, prometheus.GaugeValue, float64(len(sum.Blocked)))
}
