package transport

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	accepted *prometheus.CounterVec // protocol, result
	dialled  *prometheus.CounterVec // protocol, result
	halfOpen prometheus.Gauge
	evicted  prometheus.Counter
	overload prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	m := metrics{
		accepted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpnlb_transport_accepted_connections_total",
			Help: "Connections accepted, by protocol and result of the handshake.",
		}, []string{"protocol", "result"}),
		dialled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpnlb_transport_dialled_connections_total",
			Help: "Connections dialled, by protocol and result.",
		}, []string{"protocol", "result"}),
		halfOpen: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "vpnlb_transport_half_open_connections",
			Help: "Connections that have not proved who they are.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vpnlb_transport_evicted_connections_total",
			Help: "Half-open connections closed because there were too many.",
		}),
		overload: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vpnlb_transport_overload_calls_total",
			Help: "Calls answered 503 because too many were served at once.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	err := errors.Join(reg.Register(m.accepted), reg.Register(m.dialled), reg.Register(m.halfOpen),
		reg.Register(m.evicted), reg.Register(m.overload))
	if err != nil {
		return m, fmt.Errorf("register transport metrics: %w", err)
	}
	return m, nil
}
