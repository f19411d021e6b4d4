package cluster

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	hints   *prometheus.CounterVec // result
	live    prometheus.Gauge
	running prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	m := metrics{
		hints: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpnlb_cluster_hints_total",
			Help: "Hints received, by gossip and by RPC, and what became of them.",
		}, []string{"result"}),
		live: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "vpnlb_cluster_live_peers",
			Help: "Nodes that gossip believes alive, this one included.",
		}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "vpnlb_cluster_gossip_running",
			Help: "1: this node gossips. 0: it does not, and hints travel by the mTLS port alone.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	if err := errors.Join(reg.Register(m.hints), reg.Register(m.live), reg.Register(m.running)); err != nil {
		return m, fmt.Errorf("register gossip metrics: %w", err)
	}
	return m, nil
}
