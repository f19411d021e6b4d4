package node

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/node/config"
)

// bgpConfig is the node file's section in the speaker's words. Whatever the node
// file's checks let pass is good here too.
func bgpConfig(cfg *config.Config) (bgp.Config, error) {
	out := bgp.Config{ASN: cfg.BGP.ASN, RouterID: cfg.BGP.RouterID, NextHop6: cfg.BGP.NextHop6,
		HoldUp: cfg.BGP.HoldUp, Prepend: cfg.BGP.Prepend, ListenPort: int(cfg.BGP.ListenPort), ListenAddresses: listenOn(&cfg.BGP)}
	if out.HoldUp == 0 {
		out.HoldUp = -1 // none
	}
	if !out.NextHop6.IsValid() {
		_, out.NextHop6 = ownOn(cfg.Dataplane.Outside)
	}
	for _, nb := range cfg.BGP.Neighbours {
		out.Neighbours = append(out.Neighbours, bgp.Neighbour{
			Address: nb.Address, ASN: nb.ASN, HoldTime: nb.HoldTime, LocalAddress: nb.LocalAddress, NextHop6: nb.NextHop6,
			Port: int(nb.Port), Passive: nb.Passive, Password: string(nb.Password), PasswordFile: nb.PasswordFile,
			TTLSecurity: nb.TTLSecurity, MultihopTTL: int(nb.MultihopTTL),
		})
	}
	if !cfg.BGP.Enabled() {
		return out, nil
	}
	if err := out.Validate(); err != nil {
		return out, fmt.Errorf("bgp: %w", err)
	}
	return out, nil
}

// listenOn is where routers that dial find this node: at the addresses of their
// sessions, if all of those are written, else everywhere.
func listenOn(b *config.BGP) []netip.Addr {
	var out []netip.Addr
	for _, nb := range b.Neighbours {
		if b.ListenPort == 0 || nb.Passive && !nb.LocalAddress.IsValid() {
			return nil
		}
		if nb.Passive && !slices.Contains(out, nb.LocalAddress) {
			out = append(out, nb.LocalAddress)
		}
	}
	return out
}
