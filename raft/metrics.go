package raft

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	overflow         prometheus.Counter
	full             prometheus.Counter
	retries          prometheus.Counter
	snapshotFailures prometheus.Counter
	commit           prometheus.Histogram
	batch            prometheus.Histogram
}

// newMetrics registers with reg, or with nobody when it is nil.
func newMetrics(r *Replica, reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "vpnlb_raft_" + name, Help: help})
	}
	m := &metrics{
		overflow:         counter("watch_overflows_total", "Watchers that fell behind and had to take the whole view."),
		full:             counter("queue_full_total", "Proposals that met a full queue on this leader and waited."),
		retries:          counter("propose_retries_total", "Attempts to propose that were not answered and repeated."),
		snapshotFailures: counter("snapshot_failures_total", "Snapshots that could not be written."),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vpnlb_raft_commit_seconds",
			Help: "Time from proposal to apply of one log entry, on the leader.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vpnlb_raft_entry_commands",
			Help: "Commands in one log entry, on the leader.", Buckets: prometheus.ExponentialBuckets(1, 2, 11)}),
	}
	if reg == nil {
		return m, nil
	}
	gauge := func(name, help string, f func(*Status) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "vpnlb_raft_" + name, Help: help},
			func() float64 { s := r.Status(); return f(&s) })
	}
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, c := range []prometheus.Collector{
		m.overflow, m.full, m.retries, m.snapshotFailures, m.commit, m.batch,
		gauge("leading_state", "1 on the leader.", func(s *Status) float64 { return yes(s.Role == RoleLeader) }),
		gauge("parked_state", "1 when raft is off until a restart.", func(s *Status) float64 { return yes(s.Parked != "") }),
		gauge("applied_index", "Log index of the last applied command.", func(s *Status) float64 { return float64(s.Applied) }),
		gauge("commit_index", "Commit index of raft.", func(s *Status) float64 { return float64(s.CommitIndex) }),
		gauge("term_count", "Current term.", func(s *Status) float64 { return float64(s.Term) }),
		gauge("log_bytes", "Size of the entries in the store.", func(s *Status) float64 { return float64(s.LogBytes) }),
		gauge("store_stall_seconds", "How long the operation in the store has hung.", func(s *Status) float64 { return s.StoreStall.Seconds() }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register raft metrics: %w", err)
		}
	}
	return m, nil
}
