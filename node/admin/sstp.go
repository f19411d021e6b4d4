package admin

import (
	"log/slog"
	"net/netip"
	"time"
)

// CertRequest adds a certificate, or renews the one of this name: PEM texts that
// the cluster seals and keeps, or a file that lies on every node.
type CertRequest struct {
	Name  string `json:"name"`
	Chain string `json:"chain,omitempty"` // PEM, the server's own certificate first; may hold the key
	Key   string `json:"key,omitempty"`   // PEM
	Path  string `json:"path,omitempty"`  // on the nodes: chain and key
	// Replace lets another certificate take the place of one in use, although all
	// servers that pin the old hash must be told at once.
	Replace bool `json:"replace,omitempty"`
}

// LogValue leaves the key out of the log.
func (r CertRequest) LogValue() slog.Value {
	return slog.GroupValue(slog.String("name", r.Name), slog.String("path", r.Path), slog.Bool("replace", r.Replace))
}

// CertUseRequest lets a server, or a VIP, use a certificate.
type CertUseRequest struct {
	Name   string `json:"name"`
	Server string `json:"server,omitempty"`
	VIP    string `json:"vip,omitempty"`
}

// Certificate is one certificate as this node has it.
type Certificate struct {
	Name     string    `json:"name"`
	SHA256   string    `json:"sha256"` // of the leaf's DER: what RRAS pins
	Place    string    `json:"place"`  // cluster, or the path on the nodes
	Subject  string    `json:"subject,omitempty"`
	Issuer   string    `json:"issuer,omitempty"`
	Names    []string  `json:"names"`
	KeyType  string    `json:"key_type,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	UsedBy   []string  `json:"used_by"`
	Fault    string    `json:"fault,omitempty"` // why this node cannot show it, or what is wrong with its file
	Warnings []string  `json:"warnings,omitempty"`
	OCSP     string    `json:"ocsp,omitempty"` // of this node's staple: none, valid, missing, revoked; absent where the node does not show it
	Version  uint64    `json:"version"`
}

// RotateRequest asks where a change of certificate stands, and with Servers does
// the next step for them.
type RotateRequest struct {
	Name    string   `json:"name"` // the new certificate
	VIP     string   `json:"vip,omitempty"`
	Servers []string `json:"servers,omitempty"`
}

// Looks reports whether the request only asks.
func (r RotateRequest) Looks() bool { return len(r.Servers) == 0 }

// Rotation is where a change of certificate stands.
type Rotation struct {
	Name    string           `json:"name"`
	VIP     string           `json:"vip"`
	Servers []RotationServer `json:"servers"`
	Done    bool             `json:"done"`
	Next    *RotationStep    `json:"next,omitempty"`
	Notes   []string         `json:"notes,omitempty"`
}

// RotationServer is one server's part.
type RotationServer struct {
	Name        string `json:"name"`
	Certificate string `json:"certificate"`     // that clients of it are shown
	Admin       string `json:"admin"`           // enabled, drain, offline
	State       string `json:"state"`           // waiting, switched, verified, failing
	Calls       int    `json:"calls"`           // connected ones of this node that were shown the new one
	Alarm       string `json:"alarm,omitempty"` //
}

// RotationStep is what to do next: commands on any node, then the script on the
// server, then commands again.
type RotationStep struct {
	Title  string   `json:"title"`
	Before []string `json:"before"`
	Server string   `json:"server,omitempty"`
	Script string   `json:"script,omitempty"` // PowerShell
	After  []string `json:"after"`
	Until  string   `json:"until"`
}

// SSTPSession is one connection of SSTP through this node.
type SSTPSession struct {
	ID           uint64         `json:"id"`
	VIP          string         `json:"vip"`
	Server       string         `json:"server"`
	Client       netip.AddrPort `json:"client"`
	State        string         `json:"state"`
	Certificate  string         `json:"certificate"`
	TLS          string         `json:"tls"`
	Since        string         `json:"since"` // ago
	Idle         string         `json:"idle"`
	SinceSeconds float64        `json:"since_seconds"`
	IdleSeconds  float64        `json:"idle_seconds"`
	In           uint64         `json:"in_bytes"`  // of the client
	Out          uint64         `json:"out_bytes"` // to it
	Echoes       uint64         `json:"echoes"`
	EchoLost     uint64         `json:"echoes_lost"`
}

// SSTPStatus is the TLS of SSTP on this node.
type SSTPStatus struct {
	Services    []SSTPService `json:"services"`
	Connections int           `json:"connections"`
	Alarms      []SSTPAlarm   `json:"alarms"`
	Tickets     int           `json:"ticket_keys"` // agreed keys of session tickets
	Fault       string        `json:"fault,omitempty"`
}

// SSTPService is one VIP whose TLS ends here.
type SSTPService struct {
	VIP          string     `json:"vip"`
	Addr         netip.Addr `json:"addr"`
	Mode         string     `json:"mode"`
	Listening    bool       `json:"listening"`
	Fault        string     `json:"fault,omitempty"` // why this node does not serve it
	Connections  int        `json:"connections"`
	Certificates []string   `json:"certificates"`
}

// SSTPAlarm is what connections told about a server.
type SSTPAlarm struct {
	Server       string  `json:"server"`
	Text         string  `json:"text"`
	Since        string  `json:"since"` // ago
	SinceSeconds float64 `json:"since_seconds"`
}

// RRAS is what to run and look at on one server.
type RRAS struct {
	Server    string   `json:"server"`
	Script    string   `json:"script"` // PowerShell
	Checklist []string `json:"checklist"`
}
