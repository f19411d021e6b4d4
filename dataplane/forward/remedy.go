package forward

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxNames bounds how many passages a sentence names.
const maxNames = 3

// Text says what is dropped, by which chain, and the lines that let it through.
func (o *Obstacle) Text() string {
	var names []string
	for i := range o.Passages {
		if n := o.Passages[i].Name; !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	if n := len(names) - maxNames; n > 0 {
		names = append(names[:maxNames], fmt.Sprintf("and %d more", n))
	}
	where := ""
	if o.Where != o.Chain {
		where = ", in chain " + o.Where
	}
	return fmt.Sprintf("%s: dropped by the nftables table %s, chain %s%s; let it through with: %s",
		strings.Join(names, ", "), o.Table, o.Chain, where, strings.Join(o.Remedy(), "; "))
}

// Remedy gives the commands, one for each pair of interfaces or each port, by which
// the program that owns the table lets the packets through. Rules of nft(8) are lost when their
// table is loaded anew: they belong into its file, too.
func (o *Obstacle) Remedy() []string {
	var out []string
	for i := range o.Passages {
		if line := o.line(&o.Passages[i]); !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	if o.manager == firewalld {
		out = append(out, "firewall-cmd --reload")
	}
	return out
}

func (o *Obstacle) line(p *Passage) string {
	if p.Out == "" {
		return o.inputLine(p)
	}
	switch o.manager {
	case docker:
		iptables := "iptables"
		if p.Source.Is6() {
			iptables = "ip6tables"
		}
		return fmt.Sprintf("%s -I DOCKER-USER -i %s -o %s -j ACCEPT", iptables, p.In, p.Out)
	case ufw:
		return fmt.Sprintf("ufw route allow in on %s out on %s", p.In, p.Out)
	case firewalld:
		// vpnlb's own table restricts what may be forwarded.
		return "firewall-cmd --permanent --new-policy vpnlb; firewall-cmd --permanent --policy vpnlb --add-ingress-zone ANY --add-egress-zone ANY --set-target ACCEPT"
	default:
		return fmt.Sprintf("nft insert rule %s %s iifname %q oifname %q accept", o.Table, o.Chain, p.In, p.Out)
	}
}

func (o *Obstacle) inputLine(p *Passage) string {
	protocol := "udp"
	if p.Protocol == unix.IPPROTO_TCP {
		protocol = "tcp"
	}
	switch o.manager {
	case ufw:
		return fmt.Sprintf("ufw allow in on %s to any port %d proto %s", p.In, p.DstPort, protocol)
	case firewalld:
		return fmt.Sprintf("firewall-cmd --permanent --zone=$(firewall-cmd --get-zone-of-interface=%s) --add-port=%d/%s", p.In, p.DstPort, protocol)
	default:
		return fmt.Sprintf("nft insert rule %s %s iifname %q %s dport %d accept", o.Table, o.Chain, p.In, protocol, p.DstPort)
	}
}
