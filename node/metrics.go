package node

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

var (
	packetsDesc  = prometheus.NewDesc("vpnlb_dataplane_packets_total", "Packets by the reason why they left the program as they did.", []string{"reason"}, nil)
	bytesDesc    = prometheus.NewDesc("vpnlb_dataplane_bytes_total", "Bytes of frames by reason.", []string{"reason"}, nil)
	backendDesc  = prometheus.NewDesc("vpnlb_dataplane_backend_packets_total", "Packets forwarded to (in) and from (out) a backend.", []string{"backend", "id", "vip", "direction"}, nil)
	backendBytes = prometheus.NewDesc("vpnlb_dataplane_backend_bytes_total", "Bytes of frames forwarded to (in) and from (out) a backend.", []string{"backend", "id", "vip", "direction"}, nil)
	eventsDesc   = prometheus.NewDesc("vpnlb_dataplane_events_total", "Incidents beside the packets' fates.", []string{"event"}, nil)
	entriesDesc  = prometheus.NewDesc("vpnlb_dataplane_entries", "Affinity records in the kernel's table.", nil, nil)
	capacityDesc = prometheus.NewDesc("vpnlb_dataplane_entries_limit", "Affinity records that the kernel's table can hold.", nil, nil)
)

// planeCollector reads the data plane when somebody asks.
type planeCollector struct {
	plane *dataplane.Plane
	spec  func() *state.Spec
}

// Describe implements prometheus.Collector.
func (c planeCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{packetsDesc, bytesDesc, backendDesc, backendBytes, eventsDesc, entriesDesc, capacityDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c planeCollector) Collect(out chan<- prometheus.Metric) {
	st := c.plane.Status()
	out <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(st.Entries))
	out <- prometheus.MustNewConstMetric(capacityDesc, prometheus.GaugeValue, float64(st.Capacity))
	counters, err := c.plane.Counters()
	if err != nil {
		return
	}
	for r := table.ReasonNone + 1; r < table.ReasonCount; r++ {
		n := counters.Reasons[r]
		out <- prometheus.MustNewConstMetric(packetsDesc, prometheus.CounterValue, float64(n.Packets), r.String())
		out <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(n.Bytes), r.String())
	}
	e := counters.Events
	for name, n := range map[string]uint64{"next_hop_miss": e.NextHopMiss, "pending_written": e.PendingWritten, "pending_full": e.PendingFull,
		"partial_repaired": e.PartialRepaired, "affinity_full": e.AffinityFull, "answers_withheld": e.AnswersWithheld,
		"trace_lost": e.TraceLost, "tables_mended": e.TablesMended, "pins_mended": e.PinsMended} {
		out <- prometheus.MustNewConstMetric(eventsDesc, prometheus.CounterValue, float64(n), name)
	}
	c.collectBackends(out, &counters)
}

// collectBackends tells what each backend got and sent; a VIP's traffic is their sum.
func (c planeCollector) collectBackends(out chan<- prometheus.Metric, counters *dataplane.Counters) {
	spec := c.spec()
	for i := range spec.Backends {
		b := &spec.Backends[i]
		vip, id := "", strconv.FormatUint(uint64(b.ID), 10) // a removed server may have a successor of its name
		if v, ok := spec.VIPByID(b.VIP); ok {
			vip = v.Name
		}
		for direction, n := range map[string]dataplane.Count{"in": counters.In[b.Slot], "out": counters.Out[b.Slot]} {
			out <- prometheus.MustNewConstMetric(backendDesc, prometheus.CounterValue, float64(n.Packets), b.Name, id, vip, direction)
			out <- prometheus.MustNewConstMetric(backendBytes, prometheus.CounterValue, float64(n.Bytes), b.Name, id, vip, direction)
		}
	}
}

var (
	expiryDesc       = prometheus.NewDesc("vpnlb_sstp_certificate_not_after_seconds", "When a certificate of SSTP expires, in seconds since 1970; 0: this node cannot show it.", []string{"certificate"}, nil)
	evidenceDesc     = prometheus.NewDesc("vpnlb_sstp_evidence_pending", "Clients whose SSTP call is not recorded yet.", nil, nil)
	evidenceLostDesc = prometheus.NewDesc("vpnlb_sstp_evidence_lost_total", "Calls whose client found no room to wait for its record.", nil, nil)
)

// offloadCollector tells what the node knows beside the server of SSTP, which has
// metrics of its own.
type offloadCollector struct{ part *offload }

// Describe implements prometheus.Collector.
func (c offloadCollector) Describe(out chan<- *prometheus.Desc) {
	out <- expiryDesc
	out <- evidenceDesc
	out <- evidenceLostDesc
}

// Collect implements prometheus.Collector.
func (c offloadCollector) Collect(out chan<- prometheus.Metric) {
	for _, o := range c.part.book.All() {
		end := 0.0
		if o.Certificate != nil {
			end = float64(o.Certificate.Leaf().NotAfter.Unix())
		}
		out <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, end, o.Name)
	}
	pending, lost := c.part.evidence.counts()
	out <- prometheus.MustNewConstMetric(evidenceDesc, prometheus.GaugeValue, float64(pending))
	out <- prometheus.MustNewConstMetric(evidenceLostDesc, prometheus.CounterValue, float64(lost))
}

// newProcessMetrics collects what Go and the kernel say of this process: memory,
// goroutines, descriptors, CPU time.
func newProcessMetrics() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// serveMetrics shows the metrics of the process and of the present membership.
func (n *Node) serveMetrics(w http.ResponseWriter, r *http.Request) {
	from := prometheus.Gatherers{n.process}
	if m := n.member.Load(); m != nil {
		from = append(from, m.metrics)
	}
	promhttp.HandlerFor(from, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}
