package affinity

import "github.com/prometheus/client_golang/prometheus"

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: "vpnlb_affinity_" + name, Help: help})
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: "vpnlb_affinity_" + name, Help: help})
}

func register(reg prometheus.Registerer, cs ...prometheus.Collector) error {
	if reg == nil {
		return nil
	}
	for _, c := range cs {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}

type learnerMetrics struct {
	answers            *prometheus.CounterVec
	overflow, failures prometheus.Counter
	pending            prometheus.Gauge
	seconds            prometheus.Histogram
}

func newLearnerMetrics(reg prometheus.Registerer) (*learnerMetrics, error) {
	m := &learnerMetrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vpnlb_affinity_evidence_total", Help: "Evidence by its answer."}, []string{"answer"}),
		overflow: counter("evidence_overflow_total", "Evidence left pending because MaxPending others wait."),
		failures: counter("learn_failures_total", "Proposals to learn that failed and are tried again."),
		pending:  gauge("evidence_pending_count", "Clients whose evidence waits for an answer."),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "vpnlb_affinity_learn_seconds", Help: "Time from a proposal to its outcome.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 13)}),
	}
	return m, register(reg, m.answers, m.overflow, m.failures, m.pending, m.seconds)
}

type toucherMetrics struct {
	touched, relearned, evicted, failures prometheus.Counter
	held                                  prometheus.Gauge
}

func newToucherMetrics(reg prometheus.Registerer) (*toucherMetrics, error) {
	m := &toucherMetrics{
		touched:   counter("touches_total", "Records whose activity was proposed."),
		relearned: counter("relearned_total", "Expired records proposed again for newer activity seen here."),
		evicted:   counter("activity_evicted_total", "Held activity dropped because MaxActive clients are held."),
		failures:  counter("touch_failures_total", "Proposals to touch that failed; the activity is kept."),
		held:      gauge("activity_held_count", "Clients whose activity is not yet agreed."),
	}
	return m, register(reg, m.touched, m.relearned, m.evicted, m.failures, m.held)
}

type expiryMetrics struct {
	expired, failures prometheus.Counter
}

func newExpiryMetrics(reg prometheus.Registerer) (*expiryMetrics, error) {
	m := &expiryMetrics{
		expired:  counter("expired_total", "Records that this node, leading, proposed to expire."),
		failures: counter("expire_failures_total", "Proposals to expire that failed."),
	}
	return m, register(reg, m.expired, m.failures)
}
