package node

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

var (
	packetsDesc  = prometheus.NewDesc("vpnlb_dataplane_packets_total", "Packets by the reason why they left the program as they did.", []string{"reason"}, nil)
	bytesDesc    = prometheus.NewDesc("vpnlb_dataplane_bytes_total", "Bytes of frames by reason.", []string{"reason"}, nil)
	entriesDesc  = prometheus.NewDesc("vpnlb_dataplane_entries", "Affinity records in the kernel's table.", nil, nil)
	capacityDesc = prometheus.NewDesc("vpnlb_dataplane_entries_limit", "Affinity records that the kernel's table can hold.", nil, nil)
)

// planeCollector reads the data plane when somebody asks.
type planeCollector struct{ plane *dataplane.Plane }

// Describe implements prometheus.Collector.
func (c planeCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{packetsDesc, bytesDesc, entriesDesc, capacityDesc} {
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
}

// serveMetrics shows the metrics of the present membership.
func (n *Node) serveMetrics(w http.ResponseWriter, r *http.Request) {
	reg := prometheus.NewRegistry()
	if m := n.member.Load(); m != nil {
		reg = m.metrics
	}
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}
