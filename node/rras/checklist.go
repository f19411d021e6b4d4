package rras

import (
	"fmt"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Checklist is what to look at on and around a server, in order, one item a
// line, each with the command that answers it. What was not confirmed on a
// Windows server starts with "check this". Facts with a fault give that fault.
func Checklist(f Facts) []string {
	if err := f.Check(); err != nil {
		return []string{"first mend this: " + err.Error()}
	}
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }

	say("%s runs: Get-Service %s, SstpSvc; and users log in to it directly by SSTP before it stands behind a VIP", Service, Service)
	f.checkValues(say)
	f.checkListener(say)
	f.checkFirewall(say)
	f.checkCertificate(say)
	say("the RRAS console (Ports, Properties) has as many SSTP ports as you want clients on this server; check this: the default is said to be 128. Make the limit of the cluster the same: vpnlb backend add %s %s --limit N", f.Server, f.address())
	switch {
	case f.Mode == state.SSTPPassthrough:
		say("the default gateway is a floating gateway of the cluster (vpnlb gateway list): replies pass a node, which writes the VIP into them")
	case f.Transparent:
		say("the server sees the clients' own addresses, so the default gateway is a floating gateway of the cluster, and the cluster has one node: its replies must come back to the one that holds the connection (docs/sstp.md, 9)")
	default:
		say("RRAS logs a node's address as the client's for SSTP: use `vpnlb vip add %s ADDR --sstp %s --sstp-transparent` if it must be the client's own", f.VIP, f.modeWord())
	}
	if f.Mode == state.SSTPPassthrough {
		say("after the change, on a node: `vpnlb backend list` shows tcp up for %s; nodes do not see calls in pass-through, so make one test call from a client that `vpnlb explain CLIENT --class tcp` sends to %s, and look on that server; check this: Get-RemoteAccessConnectionStatistics lists the call", f.Server, f.Server)
		return out
	}
	say("after the change, on a node: `vpnlb backend list` shows tcp up for %s, and `vpnlb sstp status` has no alarm after one test call that carried data", f.Server)
	return out
}

func (f Facts) checkValues(say func(string, ...any)) {
	https := 1
	if f.Mode == state.SSTPOffload {
		https = 0
	}
	values := fmt.Sprintf("%s is %d", ValueHTTPS, https)
	if f.HasCertificate {
		values += fmt.Sprintf(", %s is 1, %s is %s, %s is absent", ValueByAdmin, ValueHash, f.hex(), ValueOldHash)
	}
	if f.port() != DefaultPort(f.Mode) {
		values += fmt.Sprintf(", %s is %d", ValuePort, f.port())
	} else {
		values += fmt.Sprintf(", %s is absent, 0 or %d", ValuePort, f.port())
	}
	say(`registry: Get-ItemProperty '%s': %s`, Key, values)
	if f.Mode == state.SSTPOffload {
		say("check this: the RRAS console (Properties, Security, SSL Certificate Binding) shows Use HTTP ticked after the restart; do not press Apply there later without running the script again, it may write the hash of a certificate of its own store")
	}
}

func (f Facts) checkListener(say func(string, ...any)) {
	scheme, port, extra := "https", f.port(), "-k "
	if f.Mode == state.SSTPOffload {
		scheme, extra = "http", ""
	}
	say("check this: netsh http show servicestate lists %s://...:%d%s, and no IIS site is bound to port %d (Get-WebBinding)", scheme, port, URL, port)
	say("from a node, curl -sI %s%s://%s:%d%s answers 401 (404: SSTP does not listen there; no answer: firewall or service)", extra, scheme, f.host(), port, escapedURL)
}

func (f Facts) checkFirewall(say func(string, ...any)) {
	from := "the nodes' inside addresses"
	if s := f.sources(); s != "" {
		from = s
	}
	if f.Mode == state.SSTPPassthrough || f.Transparent {
		from = "any address: the server sees the clients' own"
	}
	if f.port() == defaultPortTLS {
		say("Windows Firewall lets TCP %d in from %s (check this: the role's own rule for SSTP opens it)", f.port(), from)
		return
	}
	remote := ""
	if s := f.sources(); s != "" && !f.Transparent {
		remote = " -RemoteAddress " + s
	}
	say("Windows Firewall lets TCP %d in from %s; the role's own rule opens %d only: New-NetFirewallRule -DisplayName 'SSTP from vpnlb' -Direction Inbound -Protocol TCP -LocalPort %d%s -Action Allow",
		f.port(), from, defaultPortTLS, f.port(), remote)
	if f.Mode == state.SSTPOffload {
		say("nobody but the nodes reaches TCP %d of the server: users' packets pass there unencrypted, between node and server", f.port())
	}
}

func (f Facts) checkCertificate(say func(string, ...any)) {
	if !f.HasCertificate {
		say("the certificate in the RRAS console is the one for the name that clients dial, with its private key, and not about to expire: it stays on the server, no node has it")
		return
	}
	say("certificate %s: valid until %s, for the name that clients dial, with the usage Server Authentication, its revocation list in reach of clients", f.Certificate, f.until())
	switch f.Mode {
	case state.SSTPOffload:
		say("the private key need not be on the server: remove the PFX if it was brought there for this only")
	case state.SSTPReencrypt, state.SSTPPassthrough:
		say("the same certificate, not another one of the same key, is in LocalMachine\\My with its private key; check this: netsh http show sslcert shows it for 0.0.0.0:%d and [::]:%d", f.port(), f.port())
	}
}
