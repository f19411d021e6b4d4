package sstp

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
	"github.com/vpnlb/vpnlb/dataplane/sstp/head"
)

type metrics struct {
	accepted         prometheus.Counter
	refused          *prometheus.CounterVec
	handshakes       *prometheus.CounterVec
	handshakeSeconds prometheus.Histogram
	heads            *prometheus.CounterVec
	dials            *prometheus.CounterVec
	responses        *prometheus.CounterVec
	calls            *prometheus.CounterVec
	ended            *prometheus.CounterVec
	duration         prometheus.Histogram
	bytes            [2]prometheus.Counter
	staples          *prometheus.CounterVec

	// As the last sweep found them.
	connections, underWay, up, alarms prometheus.Gauge
}

// What becomes of a head, besides the parser's reasons.
const (
	headGood    = "good"
	headTimeout = "timeout"
	headClosed  = "closed"
)

// newMetrics registers with reg, or with nobody when it is nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vpnlb_sstp_" + name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "vpnlb_sstp_" + name, Help: help})
	}
	m := &metrics{
		connections: gauge("connections_count", "Connections of clients that stand."),
		underWay:    gauge("handshakes_count", "TLS handshakes with clients under way."),
		up:          gauge("calls_count", "Calls that are connected."),
		alarms:      gauge("alarms_count", "Servers' faults that a person must mend."),
		accepted:    prometheus.NewCounter(prometheus.CounterOpts{Name: "vpnlb_sstp_accepted_total", Help: "TCP connections taken from the kernel."}),
		refused:     vec("refused_total", "Connections that were not served, by reason.", "reason"),
		handshakes:  vec("handshakes_total", "TLS handshakes with clients by result and version.", "result", "version"),
		handshakeSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vpnlb_sstp_handshake_seconds",
			Help: "Time of TLS handshakes that came up.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15)}),
		heads:     vec("request_heads_total", "Request heads by what was wrong with them, or good.", "result"),
		dials:     vec("dials_total", "Connections to servers by result.", "result"),
		responses: vec("responses_total", "Response heads of servers by class of status.", "class"),
		calls:     vec("call_events_total", "What the control messages of calls said.", "event"),
		ended:     vec("connections_ended_total", "Connections that ended, by reason.", "reason"),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vpnlb_sstp_connection_seconds",
			Help: "How long connections lasted.", Buckets: prometheus.ExponentialBuckets(0.1, 4, 10)}),
		staples: vec("ocsp_answers_total", "Answers of OCSP responders by result.", "result"),
	}
	for side := range m.bytes {
		m.bytes[side] = prometheus.NewCounter(prometheus.CounterOpts{Name: "vpnlb_sstp_relayed_bytes_total",
			Help: "Bytes relayed, without TLS, by who sent them.", ConstLabels: prometheus.Labels{"from": control.Side(side).String()}})
	}
	for _, r := range refusals {
		m.refused.WithLabelValues(r)
	}
	for _, r := range ends {
		m.ended.WithLabelValues(r)
	}
	for _, r := range head.Reasons() {
		m.heads.WithLabelValues(r.String())
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.accepted, m.refused, m.handshakes, m.handshakeSeconds, m.heads, m.dials, m.responses, m.calls,
		m.ended, m.duration, m.bytes[0], m.bytes[1], m.staples, m.connections, m.underWay, m.up, m.alarms} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register sstp metrics: %w", err)
		}
	}
	return m, nil
}
