package rras

import (
	_ "embed"
	"fmt"
	"strings"
	"text/template"

	"github.com/vpnlb/vpnlb/cluster/state"
)

//go:embed script.ps1.tmpl
var scriptText string

var scriptTemplate = template.Must(template.New("script").Option("missingkey=error").Parse(scriptText))

// blanks is what the template may say. Every string in it is a constant, a
// number, a hash, a date or a name that Check let pass: nothing needs quoting.
type blanks struct {
	Server, VIP, Mode, Certificate, Until, Import, Switch        string
	Hex                                                          string // "" = keep the hash that is there
	HTTPS                                                        int
	Port                                                         uint16
	OtherPort                                                    bool
	Store                                                        bool // the server shows the certificate itself
	Key, NativeKey, Service                                      string
	ValueHTTPS, ValueByAdmin, ValueHash, ValueOldHash, ValuePort string
}

// Switch is the command that makes nodes show the certificate to a server's clients;
// it changes nothing where they do. The VIP is named: TLS of several may end on nodes.
func (f Facts) Switch() string {
	return fmt.Sprintf("vpnlb cert rotate %s --vip %s --server %s", f.Certificate, f.VIP, f.Server)
}

// Script is the PowerShell that brings a server to its mode and certificate: it
// compares, saves the values of before, writes, restarts the service, reads back
// and fails where something still differs. Where nothing differs it does
// nothing. It can be pasted into a console (one statement, no empty line) or
// saved as a file. Facts with a fault give a comment that says so.
func Script(f Facts) string {
	if err := f.Check(); err != nil {
		return "# nothing to run: " + strings.ReplaceAll(err.Error(), "\n", "\n# ") + "\n"
	}
	b := blanks{
		Server: f.Server, VIP: f.VIP, Mode: f.modeWord(), HTTPS: 1, Port: f.port(), OtherPort: f.port() != DefaultPort(f.Mode),
		Store: f.Mode != state.SSTPOffload, Import: "choose the certificate in the RRAS console (Properties, Security) first",
		Key: Key, NativeKey: strings.Replace(Key, "HKLM:", "HKLM", 1), Service: Service,
		ValueHTTPS: ValueHTTPS, ValueByAdmin: ValueByAdmin, ValueHash: ValueHash, ValueOldHash: ValueOldHash, ValuePort: ValuePort,
	}
	if f.Mode == state.SSTPOffload {
		b.HTTPS = 0
	}
	if f.HasCertificate {
		b.Hex, b.Certificate, b.Until, b.Switch = f.hex(), f.Certificate, f.until(), f.Switch()
		b.Import = fmt.Sprintf("import %s with its private key first", f.Certificate)
	}
	var out strings.Builder
	if err := scriptTemplate.Execute(&out, b); err != nil { // a builder takes everything: the template is broken
		return "# nothing to run: " + err.Error() + "\n"
	}
	return out.String()
}
