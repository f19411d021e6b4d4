package transport

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Name is what a node certificate says: three subject alternative names of
// type URI (RFC 5280 section 4.2.1.6), one for each fact.
type Name struct {
	Cluster state.ClusterID
	Node    state.NodeID
	Role    state.Role
}

// The three URIs are URNs with these beginnings. They are in every certificate
// of every cluster: never change them.
const (
	uriCluster = "urn:vpnlb:cluster:"
	uriNode    = "urn:vpnlb:node:"
	uriRole    = "urn:vpnlb:role:"
)

func roleWord(r state.Role) (string, bool) {
	switch r {
	case state.RoleNode:
		return "node", true
	case state.RoleWitness:
		return "witness", true
	}
	return "", false
}

func roleOf(word string) (state.Role, bool) {
	for _, r := range []state.Role{state.RoleNode, state.RoleWitness} {
		if w, _ := roleWord(r); w == word {
			return r, true
		}
	}
	return 0, false
}

// uris returns the three names in their fixed order.
func (n Name) uris() ([]*url.URL, error) {
	word, ok := roleWord(n.Role)
	switch {
	case n.Cluster.IsZero():
		return nil, errors.New("name without a cluster ID")
	case n.Node.IsZero():
		return nil, errors.New("name without a node ID")
	case !ok:
		return nil, fmt.Errorf("name with unknown role %d", n.Role)
	}
	return []*url.URL{
		urn(uriCluster + n.Cluster.String()),
		urn(uriNode + n.Node.String()),
		urn(uriRole + word),
	}, nil
}

func urn(s string) *url.URL {
	return &url.URL{Scheme: "urn", Opaque: strings.TrimPrefix(s, "urn:")}
}

// parseName reads the URIs of a certificate. Exactly one of each kind must be
// there; a name that we do not know is a refusal, not a curiosity: a newer role
// must not pass for an older one.
func parseName(uris []*url.URL) (Name, error) {
	var n Name
	if len(uris) != 3 {
		return n, fmt.Errorf("certificate has %d names, not cluster, node and role", len(uris))
	}
	for _, u := range uris {
		s := u.String()
		var err error
		switch {
		case strings.HasPrefix(s, uriCluster) && n.Cluster.IsZero():
			err = n.Cluster.UnmarshalText([]byte(s[len(uriCluster):]))
		case strings.HasPrefix(s, uriNode) && n.Node.IsZero():
			err = n.Node.UnmarshalText([]byte(s[len(uriNode):]))
		case strings.HasPrefix(s, uriRole) && n.Role == 0:
			var ok bool
			if n.Role, ok = roleOf(s[len(uriRole):]); !ok {
				err = fmt.Errorf("role %q is not one of a cluster member", s[len(uriRole):])
			}
		default:
			err = fmt.Errorf("name %q is unknown or twice there", s)
		}
		if err != nil {
			return Name{}, err
		}
	}
	if n.Cluster.IsZero() || n.Node.IsZero() || n.Role == 0 {
		return Name{}, errors.New("certificate lacks one of cluster, node and role")
	}
	return n, nil
}
