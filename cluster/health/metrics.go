package health

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	results  *prometheus.CounterVec
	calls    *prometheus.CounterVec
	stray    prometheus.Counter
	unopened prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpnlb_health_probes_total", Help: "Probes of servers by what they met."}, []string{"note"}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpnlb_health_sstp_calls_total", Help: "Calls of SSTP made to servers, by what they met."}, []string{"note"}),
		stray: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vpnlb_health_stray_answers_total", Help: "Datagrams at the probe socket that answer no open probe: late, forged or malformed."}),
		unopened: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vpnlb_health_socket_failures_total", Help: "Attempts to open a probe socket that failed."}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.results, m.calls, m.stray, m.unopened} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
