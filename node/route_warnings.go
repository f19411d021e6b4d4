package node

import (
	"fmt"
	"net"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
	"github.com/vpnlb/vpnlb/node/admin"
)

// gatewayHere is whether a gateway address is on this node's interface, and what
// an administrator must look at; empty: nothing.
func gatewayHere(kept *gateway.Status, id state.GatewayID) (here bool, alarm string) {
	for _, g := range kept.Facts.Gateways {
		if g.ID != id {
			continue
		}
		here = g.Held
		if g.Holder == gateway.HolderForeign {
			alarm = foreignHolder(net.HardwareAddr(g.MAC[:]), g.Held)
		}
	}
	return here, alarm
}

// heldGateways are those on this node's interface. What is only planned helps no
// server, and nobody may rely on it.
func heldGateways(kept *gateway.Status) (out []state.GatewayID) {
	for _, g := range kept.Facts.Gateways {
		if g.Held {
			out = append(out, g.ID)
		}
	}
	return out
}

// foreignHolder tells what is wrong with an address that a stranger answers for,
// and what to do.
func foreignHolder(mac net.HardwareAddr, held bool) string {
	does := "so this node does not take it"
	if held {
		does = "and this node, which holds it, too: servers send their replies to either"
	}
	return fmt.Sprintf("a host with MAC %s, which is no member's, answers for the address, %s; take the address off that host", mac, does)
}

// gatewayWarnings names gateways that a stranger has, and why this node should
// hold none.
func (m *member) gatewayWarnings(st *admin.Status, add func(string, ...any)) {
	for _, g := range st.Gateways {
		if g.Alarm != "" {
			add("gateway %s: %s", g.Addr, g.Alarm)
		}
	}
	if m.fit.insideDead.Load() {
		add("inside interface %s has no link: this node leaves the VIPs and gateways to others where there are any", m.cfg.Dataplane.Inside)
	}
	if m.fit.outsideDead.Load() {
		add("outside interface %s has no link, or no router behind it is in session any more: gateways go to other nodes", m.cfg.Dataplane.Outside)
	}
	if why := m.fit.unfit.get(); why != "" && len(st.Gateways) > 0 {
		add("gateways go to other nodes: %s", why)
	}
}

// routeWarnings names what stands between a decision and the routers.
func (m *member) routeWarnings(st *admin.Status, add func(string, ...any)) {
	for _, v := range st.VIPs {
		switch {
		case v.Announce == "unsent":
			add("VIP %s is announced to nobody: no router is in session for its family", v.Name)
		case v.Reason == bgp.StateTooOld.String():
			add("VIP %s: the stored state was last known good %s ago, and no leader is found: start the other nodes; where none can come back, 'vpnlb serve --force-cold-start' forwards from it all the same", v.Name, ago(m.stateAge()))
		}
	}
}

var (
	gatewayHeldDesc  = prometheus.NewDesc("vpnlb_gateway_held", "1: the gateway address is on this node's inside interface.", []string{"gateway"}, nil)
	gatewayAlarmDesc = prometheus.NewDesc("vpnlb_gateway_foreign", "1: a host that is no member answers for the gateway address.", []string{"gateway"}, nil)
)

// gatewayCollector tells of the gateway addresses when somebody asks.
type gatewayCollector struct{ keeper *gateway.Keeper }

// Describe implements prometheus.Collector.
func (c gatewayCollector) Describe(out chan<- *prometheus.Desc) {
	out <- gatewayHeldDesc
	out <- gatewayAlarmDesc
}

// Collect implements prometheus.Collector.
func (c gatewayCollector) Collect(out chan<- prometheus.Metric) {
	number := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, g := range c.keeper.Status().Facts.Gateways {
		out <- prometheus.MustNewConstMetric(gatewayHeldDesc, prometheus.GaugeValue, number(g.Held), g.Addr.String())
		out <- prometheus.MustNewConstMetric(gatewayAlarmDesc, prometheus.GaugeValue, number(g.Holder == gateway.HolderForeign), g.Addr.String())
	}
}
