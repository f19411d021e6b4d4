package state

import (
	"encoding/binary"
	"errors"
)

// What format 3 adds to VIPs and backends, the same in commands and snapshots.

func appendVIPSSTP(b []byte, v *VIP) []byte {
	b = binary.AppendUvarint(b, uint64(len(v.Certificates)))
	for _, name := range v.Certificates {
		b = appendString(b, name)
	}
	return appendBool(b, v.Transparent)
}

func (r *reader) vipSSTP(v *VIP) {
	v.Certificates = list(r, "certificates", MaxVIPCerts, 1, func(r *reader) string { return r.string("name", MaxText) })
	v.Transparent = r.bool()
}

func appendBackendSSTP(b []byte, v *Backend) []byte {
	return appendString(binary.AppendUvarint(b, uint64(v.SSTPPort)), v.Certificate)
}

func (r *reader) backendSSTP(v *Backend) {
	v.SSTPPort, v.Certificate = r.uint16(), r.string("name", MaxText)
}

// vipWithSSTP reads kind 28. What kind 2 can say has that form alone.
func (r *reader) vipWithSSTP() VIP {
	v := r.vip()
	if r.vipSSTP(&v); len(v.Certificates) == 0 && !v.Transparent && r.err == nil {
		r.fail(errors.New("a VIP without certificates in the form of those with some"))
	}
	return v
}

// backendWithSSTP reads kind 29, as vipWithSSTP does.
func (r *reader) backendWithSSTP() Backend {
	b := r.backend()
	b.Mode = Mode(r.uint8())
	if r.backendSSTP(&b); b.SSTPPort == 0 && b.Certificate == "" && r.err == nil {
		r.fail(errors.New("a backend without port and certificate in the form of those with one"))
	}
	return b
}
