package rras

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Where SSTP keeps its settings on a Windows server, and their names.
const (
	Key              = `HKLM:\SYSTEM\CurrentControlSet\Services\SstpSvc\Parameters`
	ValueHTTPS       = "UseHttps"                // DWORD: 1 = the server ends TLS itself
	ValueByAdmin     = "isHashConfiguredByAdmin" // DWORD: 1 = the hash below counts
	ValueHash        = "SHA256CertificateHash"   // binary, 32 bytes: SHA-256 of the certificate's DER
	ValueOldHash     = "SHA1CertificateHash"     // has to go: nobody wants SHA-1 offered
	ValuePort        = "ListenerPort"            // DWORD
	Service          = "RemoteAccess"            // reads the values when it starts; IKEv2 tunnels end with it too
	URL              = "/sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/"
	defaultPortPlain = 80
	defaultPortTLS   = 443
)

// escapedURL is URL for commands whose shells would read braces.
var escapedURL = strings.NewReplacer("{", "%7B", "}", "%7D").Replace(URL)

// Facts are what the cluster knows of one server.
type Facts struct {
	Server string         // its name in the cluster
	Addr   netip.Addr     // its address; the zero value prints as ADDRESS
	VIP    string         // the VIP's name
	Mode   state.SSTPMode // passthrough, offload or reencrypt
	Port   uint16         // where the server listens for SSTP; 0 = 80 in offload, else 443
	// HasCertificate: the next three describe the certificate that clients of
	// this server see on a node, or will see after the change. Needed but in
	// pass-through.
	HasCertificate bool
	Certificate    string   // its name in the cluster
	Hash           [32]byte // SHA-256 of the leaf's DER
	NotAfter       time.Time
	// Transparent: the nodes connect to the server from the clients' addresses.
	Transparent bool
	// Nodes are the addresses that the nodes connect from, where they are known.
	Nodes []netip.Addr
}

// Check names every fault of the facts at once; Script, Checklist and Plan want
// facts without one.
func (f Facts) Check() error {
	var faults []error
	for _, n := range []struct{ what, name string }{{"server", f.Server}, {"vip", f.VIP}} {
		if !plain(n.name) {
			faults = append(faults, fmt.Errorf("%s name %q cannot stand in a script", n.what, n.name))
		}
	}
	if f.HasCertificate && !plain(f.Certificate) {
		faults = append(faults, fmt.Errorf("certificate name %q cannot stand in a script", f.Certificate))
	}
	if f.HasCertificate && f.Hash == ([32]byte{}) {
		faults = append(faults, fmt.Errorf("certificate %s has no hash: the node has not loaded it", f.Certificate))
	}
	switch f.Mode {
	case state.SSTPOffload, state.SSTPReencrypt:
		if !f.HasCertificate {
			faults = append(faults, fmt.Errorf("vip %s has no certificate for %s: run `vpnlb cert add NAME --chain FILE --key FILE`, then `vpnlb cert use NAME --vip %s`", f.VIP, f.Server, f.VIP))
		}
	case state.SSTPPassthrough:
		if f.port() != defaultPortTLS {
			faults = append(faults, fmt.Errorf("port %d of %s: pass-through does not change ports, the server listens on %d", f.Port, f.Server, defaultPortTLS))
		}
	default:
		faults = append(faults, fmt.Errorf("vip %s carries no SSTP: run `vpnlb vip add %s ADDR --sstp passthrough`, or offload, or reencrypt", f.VIP, f.VIP))
	}
	return errors.Join(faults...)
}

// plain: the words that the cluster takes for names, which need no quoting.
func plain(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

// DefaultPort is where a server of this mode listens unless it is told otherwise.
func DefaultPort(mode state.SSTPMode) uint16 {
	if mode == state.SSTPOffload {
		return defaultPortPlain
	}
	return defaultPortTLS
}

func (f Facts) port() uint16 { return cmp.Or(f.Port, DefaultPort(f.Mode)) }

func (f Facts) modeWord() string {
	switch f.Mode {
	case state.SSTPOffload:
		return "offload"
	case state.SSTPReencrypt:
		return "reencrypt"
	case state.SSTPPassthrough:
		return "passthrough"
	}
	return "off"
}

// hex is the hash as Windows tools print it: upper case, no separators.
func (f Facts) hex() string { return strings.ToUpper(hex.EncodeToString(f.Hash[:])) }

func (f Facts) until() string {
	if f.NotAfter.IsZero() {
		return "an unknown date"
	}
	return f.NotAfter.UTC().Format("2006-01-02 15:04 MST")
}

func (f Facts) address() string {
	if !f.Addr.IsValid() {
		return "ADDRESS"
	}
	return f.Addr.String()
}

// host is the address as a URL has it.
func (f Facts) host() string {
	if f.Addr.Is6() {
		return "[" + f.Addr.String() + "]"
	}
	return f.address()
}

// sources are the nodes' addresses as a firewall rule takes them; "" = unknown.
func (f Facts) sources() string {
	words := make([]string, 0, len(f.Nodes))
	for _, n := range slices.SortedFunc(slices.Values(f.Nodes), netip.Addr.Compare) {
		words = append(words, n.String())
	}
	return strings.Join(words, ",")
}
