package bgp

import (
	"fmt"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
)

type speakerMetrics struct {
	established *prometheus.GaugeVec
	dropped     *prometheus.GaugeVec
	refused     *prometheus.GaugeVec
	hold        *prometheus.GaugeVec
}

func newSpeakerMetrics(reg prometheus.Registerer) (*speakerMetrics, error) {
	m := &speakerMetrics{established: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "vpnlb_bgp_session_established",
		Help: "1 while the BGP session with the neighbour is established.",
	}, []string{"neighbour"})}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"neighbour"})
	}
	m.dropped = gauge("vpnlb_bgp_updates_dropped", "UPDATE messages that the router sent and this node dropped, since its start.")
	m.refused = gauge("vpnlb_bgp_connections_refused", "Connections that ended for a message of the router that breaks the protocol or the configuration, since the start.")
	m.hold = gauge("vpnlb_bgp_hold_time_seconds", "Negotiated hold time of the session; 0 while there is none.")
	return m, register(reg, m.established, m.dropped, m.refused, m.hold)
}

// screened takes over what the screen counts of one neighbour.
func (m *speakerMetrics) screened(n *NeighbourStatus) {
	a := n.Address.String()
	m.dropped.WithLabelValues(a).Set(float64(n.Dropped))
	m.refused.WithLabelValues(a).Set(float64(n.Refused))
	m.hold.WithLabelValues(a).Set(n.Hold.Seconds())
}

func (m *speakerMetrics) session(a netip.Addr, up bool) {
	v := 0.0
	if up {
		v = 1
	}
	m.established.WithLabelValues(a.String()).Set(v)
}

type announcerMetrics struct {
	announced *prometheus.GaugeVec   // by vip and action: 1 for the current one
	reason    *prometheus.GaugeVec   // by vip and reason: 1 for the current one
	changes   *prometheus.CounterVec // by vip and action
	limited   prometheus.Counter
	failures  prometheus.Counter
}

func newAnnouncerMetrics(reg prometheus.Registerer) (*announcerMetrics, error) {
	m := &announcerMetrics{
		announced: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "vpnlb_bgp_vip_action",
			Help: "1 for the action that the routers were told last.",
		}, []string{"vip", "action"}),
		reason: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "vpnlb_bgp_vip_reason",
			Help: "1 for the reason of the latest decision.",
		}, []string{"vip", "reason"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpnlb_bgp_vip_changes_total",
			Help: "Changes of what the routers are told, by the new action.",
		}, []string{"vip", "action"}),
		limited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vpnlb_bgp_withdrawals_limited_total",
			Help: "Withdrawals replaced by a demotion because of too many changes.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vpnlb_bgp_set_failures_total",
			Help: "Attempts to hand the advertisements to the speaker that failed.",
		}),
	}
	return m, register(reg, m.announced, m.reason, m.changes, m.limited, m.failures)
}

func register(reg prometheus.Registerer, cs ...prometheus.Collector) error {
	if reg == nil {
		return nil
	}
	for _, c := range cs {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register bgp metrics: %w", err)
		}
	}
	return nil
}
