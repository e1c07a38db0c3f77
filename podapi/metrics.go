package podapi

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// states are what /metrics tells of the agent, one series each.
var states = []State{Starting, Ready, Working, Asking, IdleWithWork, IdleWithout, Failed}

// metrics is the pod-api in the text format of Prometheus.
func metrics(d Driver) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, st := range states {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "devaipod_agent_state", Help: "1 for the state that the agent is in.", ConstLabels: prometheus.Labels{"state": string(st)},
		}, func() float64 {
			if d.Summary().State == st {
				return 1
			}
			return 0
		}))
	}
	r.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "devaipod_model_requests_total", Help: "Requests to the model since the gate started."}, func() float64 {
			return float64(d.Summary().Model.Requests)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "devaipod_model_requests_in_flight", Help: "Requests that the model has not answered whole."}, func() float64 {
			return float64(d.Summary().Model.InFlight)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "devaipod_blocked_hosts", Help: "Hosts that the gate refuses and that were asked for."}, func() float64 {
			return float64(len(d.Summary().Blocked))
		}),
	)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}
