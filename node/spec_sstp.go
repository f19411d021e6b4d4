package node

import (
	"slices"
	"strings"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
)

// sstpModes are the words of --sstp.
var sstpModes = map[string]state.SSTPMode{
	"off": state.SSTPOff, "passthrough": state.SSTPPassthrough, "offload": state.SSTPOffload, "reencrypt": state.SSTPReencrypt,
}

// vipSSTP puts what was asked of TCP 443 into a VIP. old is nil for a new one.
func vipSSTP(spec *state.Spec, old, v *state.VIP, in admin.VIPRequest) (notes []string, err error) {
	if in.SSTP != "" {
		mode, ok := sstpModes[in.SSTP]
		if !ok {
			return nil, refuse("--sstp is off, passthrough, offload or reencrypt, not %q", in.SSTP)
		}
		v.SSTP = mode
	}
	if in.Transparent != nil {
		v.Transparent = *in.Transparent
		if v.Transparent {
			if err := refuseTransparent(spec); err != nil {
				return nil, err
			}
		}
	}
	if in.Certificates != nil {
		v.Certificates = slices.DeleteFunc(slices.Clone(*in.Certificates), func(name string) bool { return name == "" })
	}
	for _, name := range v.Certificates {
		if _, ok := spec.CertificateByName(name); !ok {
			return nil, missing("no certificate is called %q: add it with 'vpnlb cert add %s --chain FILE --key FILE' first", name, name)
		}
	}
	word := sstpWords[v.SSTP]
	switch {
	case v.SSTP.Ends() && len(v.Certificates) == 0:
		return nil, refuse("in mode %s the nodes end TLS and need a certificate: name it with --sstp-cert ('vpnlb cert list' shows them)", word)
	case v.SSTP.Ends() && (old == nil || old.SSTP != v.SSTP):
		notes = append(notes, "each server must expect the certificate's hash: 'vpnlb sstp rras SERVER' prints what to run there")
	}
	if v.SSTP.Ends() && len(v.Certificates) > 1 {
		notes = append(notes, "servers that name none expect the hash of "+v.Certificates[0]+", and clients are shown that one for them; another one is shown for servers that name it: 'vpnlb cert use NAME --server SERVER'")
	}
	if v.SSTP.Ends() && v.Transparent {
		notes = append(notes, "transparent: a server's replies must come back to the very node that dialled it; where they reach another one, connections hang in state dialing")
	}
	if old != nil && old.SSTP != v.SSTP && old.SSTP != state.SSTPOff {
		notes = append(notes, "SSTP connections that were made in mode "+sstpWords[old.SSTP]+" end now; clients dial again")
	}
	if old != nil && v.SSTP.Ends() && len(old.Certificates) > 0 && v.Certificates[0] != old.Certificates[0] {
		if pinning := pinning(spec, old); len(pinning) > 0 {
			notes = append(notes, "servers without a certificate of their own are shown to clients with "+v.Certificates[0]+
				" from now on, and must expect its hash: "+strings.Join(pinning, ", ")+" ('vpnlb cert rotate' goes one by one)")
		}
	}
	return notes, nil
}

// pinning lists the servers of a VIP that expect the VIP's certificate.
func pinning(spec *state.Spec, v *state.VIP) (names []string) {
	for i := range spec.Backends {
		if b := &spec.Backends[i]; b.VIP == v.ID && b.Admin != state.AdminRemoved && b.Certificate == "" {
			names = append(names, b.Name)
		}
	}
	return names
}
