package lab

import "net/netip"

// routers are the addresses that the nodes' BGP sessions go to: one of each
// family, because a session carries the VIPs of its own.
func (o Options) routers() (out []netip.Addr) {
	for _, f := range o.families() {
		out = append(out, f.routerOutside.Addr())
	}
	return out
}

// specCommands tell a new cluster what it balances, in the words of the command
// line. Every lab option that the nodes have to know of is named here and
// nowhere else.
func (o Options) specCommands() (out [][]string) {
	if o.SSTP != SSTPOff { // known in any mode: another one may follow
		for _, name := range []string{certOld, certNew} {
			chain, key := certFiles(o.Name, name)
			out = append(out, []string{"cert", "add", name, "--chain", chain, "--key", key})
		}
	}
	for _, f := range o.families() {
		out = append(out, o.vipCommand(f, certOld))
	}
	for _, f := range o.families() {
		for i := 1; i <= o.Nodes; i++ {
			out = append(out, []string{"gateway", "add", f.gateway(i).String()})
		}
		for i := 1; i <= o.Servers; i++ {
			backend := []string{"backend", "add", f.serverName(i), f.server(i).String(), "--vip", f.vipName}
			if o.DSR {
				backend = append(backend, "--mode", "dsr")
			}
			out = append(out, backend)
		}
	}
	return out
}

// vipCommand makes a VIP, or changes its mode; cert is shown where TLS ends.
func (o Options) vipCommand(f family, cert string) []string {
	vip := []string{"vip", "add", f.vipName, f.vip.String()}
	switch {
	case o.SSTP.ends():
		vip = append(vip, "--sstp", string(o.SSTP), "--sstp-cert", cert)
	case o.SSTP == SSTPPassthrough || o.Passthrough:
		vip = append(vip, "--sstp", string(SSTPPassthrough))
	}
	return vip
}

// vipFor is the VIP that a client of that address dials.
func (l *Lab) vipFor(a netip.Addr) netip.Addr {
	if a.Is6() {
		return vip6Addr
	}
	return vipAddr
}
