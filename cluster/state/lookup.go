package state

import (
	"cmp"
	"net/netip"
	"slices"
)

// The look-ups return pointers into the Spec, which is immutable: read only.

// VIPByID finds a VIP.
func (s *Spec) VIPByID(id VIPID) (*VIP, bool) {
	i, ok := slices.BinarySearchFunc(s.VIPs, id, func(v VIP, id VIPID) int { return cmp.Compare(v.ID, id) })
	if !ok {
		return nil, false
	}
	return &s.VIPs[i], true
}

// VIPByName finds a VIP.
func (s *Spec) VIPByName(name string) (*VIP, bool) {
	for i := range s.VIPs {
		if s.VIPs[i].Name == name {
			return &s.VIPs[i], true
		}
	}
	return nil, false
}

// VIPByAddr finds a VIP.
func (s *Spec) VIPByAddr(a netip.Addr) (*VIP, bool) {
	for i := range s.VIPs {
		if s.VIPs[i].Addr == a {
			return &s.VIPs[i], true
		}
	}
	return nil, false
}

// backendAt is the place of a backend in Backends, -1 if there is none.
func (s *Spec) backendAt(id BackendID) int {
	low, high := 0, len(s.Backends)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if s.Backends[mid].ID < id {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low < len(s.Backends) && s.Backends[low].ID == id {
		return low
	}
	return -1
}

// BackendByID finds a backend, a removed one that is still named included.
func (s *Spec) BackendByID(id BackendID) (*Backend, bool) {
	i := s.backendAt(id)
	if i < 0 {
		return nil, false
	}
	return &s.Backends[i], true
}

// BackendByName finds a backend; a removed one only when no other has the name
// (a server is often replaced by one of the same name), the newest first.
func (s *Spec) BackendByName(name string) (*Backend, bool) {
	var removed *Backend
	for i := range s.Backends {
		b := &s.Backends[i]
		switch {
		case b.Name != name:
		case b.Admin != AdminRemoved:
			return b, true
		default:
			removed = b
		}
	}
	return removed, removed != nil
}

// BackendByAddr finds a backend by address: at most one holds it, removed or not.
func (s *Spec) BackendByAddr(a netip.Addr) (*Backend, bool) {
	for i := range s.Backends {
		if s.Backends[i].Addr == a {
			return &s.Backends[i], true
		}
	}
	return nil, false
}

// BackendBySlot finds the holder of a slot.
func (s *Spec) BackendBySlot(slot Slot) (*Backend, bool) {
	for i := range s.Backends {
		if s.Backends[i].Slot == slot && slot != 0 {
			return &s.Backends[i], true
		}
	}
	return nil, false
}

// GatewayByID finds a gateway.
func (s *Spec) GatewayByID(id GatewayID) (*Gateway, bool) {
	for i := range s.Gateways {
		if s.Gateways[i].ID == id {
			return &s.Gateways[i], true
		}
	}
	return nil, false
}

// GatewayByAddr finds a gateway.
func (s *Spec) GatewayByAddr(a netip.Addr) (*Gateway, bool) {
	for i := range s.Gateways {
		if s.Gateways[i].Addr == a {
			return &s.Gateways[i], true
		}
	}
	return nil, false
}

// MemberByID finds a member.
func (s *Spec) MemberByID(id NodeID) (*Member, bool) {
	for i := range s.Members {
		if s.Members[i].ID == id {
			return &s.Members[i], true
		}
	}
	return nil, false
}

// MemberByName finds a member.
func (s *Spec) MemberByName(name string) (*Member, bool) {
	for i := range s.Members {
		if s.Members[i].Name == name {
			return &s.Members[i], true
		}
	}
	return nil, false
}

// RemovedByID tells whether and when a member was removed.
func (s *Spec) RemovedByID(id NodeID) (*RemovedMember, bool) {
	for i := range s.Removed {
		if s.Removed[i].ID == id {
			return &s.Removed[i], true
		}
	}
	return nil, false
}

// TokenByHash finds a join token, expired ones included.
func (s *Spec) TokenByHash(hash [32]byte) (*Token, bool) {
	for i := range s.Tokens {
		if s.Tokens[i].Hash == hash {
			return &s.Tokens[i], true
		}
	}
	return nil, false
}

// SecretByName finds a sealed secret.
func (s *Spec) SecretByName(name string) (*Secret, bool) {
	for i := range s.Secrets {
		if s.Secrets[i].Name == name {
			return &s.Secrets[i], true
		}
	}
	return nil, false
}

// SSTPPort is the TCP port that nodes dial at a server, where they end TLS:
// RRAS' own of HTTP or HTTPS unless the server has another.
func (s *Spec) SSTPPort(b *Backend) uint16 {
	v, ok := s.VIPByID(b.VIP)
	switch {
	case b.SSTPPort != 0:
		return b.SSTPPort
	case ok && v.SSTP == SSTPOffload:
		return 80
	}
	return 443
}

// CertificateOf names the certificate whose hash a server pins, and which its
// clients are shown; empty: the VIP has none.
func (v *VIP) CertificateOf(b *Backend) string {
	if b.Certificate != "" || len(v.Certificates) == 0 {
		return b.Certificate
	}
	return v.Certificates[0]
}

// CertificateByName finds a certificate's place.
func (s *Spec) CertificateByName(name string) (*CertificatePlace, bool) {
	for i := range s.Certs {
		if s.Certs[i].Name == name {
			return &s.Certs[i], true
		}
	}
	return nil, false
}
