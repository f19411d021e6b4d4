package sysctl

// IPv6 lists what the data interfaces need besides [Wanted] where the cluster
// has IPv6 addresses: hand it to Mend. In this order:
//
//   - disable_ipv6 0, on lo, too: the VIPs lie there. Only these interfaces: "all"
//     would switch IPv6 on where an administrator switched it off.
//   - accept_ra 2 wherever it is 1, on every interface. A host that forwards no
//     longer honours router advertisements at 1, and when forwarding is switched
//     on the kernel throws away the default routes that it learned from them:
//     the node would lose its way out, by the management interface perhaps. 2
//     keeps what the administrator has; 0 is left alone: whether a router's word
//     counts is not ours to decide.
//   - forwarding: the XDP program's FIB lookup asks the interface, the kernel's
//     own forwarding asks "all", and there is nothing in between before Linux
//     6.17. Writing "all" writes every interface, so what those had is saved, too.
//   - accept_redirects 0: the kernel ignores redirects on an interface that
//     forwards; this holds for the moment in which somebody stops that.
//
// IPv6 has no rp_filter and no accept_local: a forwarded packet's source is not
// looked up. It has no arp_ignore: the kernel answers solicitations only for
// addresses of the interface they come in by. And it has no send_redirects:
// package forward drops the redirects that this host would send.
func IPv6(interfaces []string) []Setting {
	var out []Setting
	conf := func(name, key, value string, also ...string) {
		out = append(out, Setting{Key: "net/ipv6/conf/" + name + "/" + key, Value: value, Also: also})
	}
	conf("lo", "disable_ipv6", "0")
	for _, name := range interfaces {
		conf(name, "disable_ipv6", "0")
	}
	conf(Every, "accept_ra", "2", "0")
	out = append(out, Setting{Key: "net/ipv6/conf/all/forwarding", Value: "1", Spreads: true})
	for _, name := range interfaces {
		conf(name, "forwarding", "1")
		conf(name, "accept_redirects", "0")
	}
	return out
}
