package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// appendCommand writes the kind and the fields in the order of the struct.
func appendCommand(b []byte, c Command) []byte {
	if c == nil {
		return append(b, 0) // no kind: a fault of the proposer; the decoder refuses it
	}
	b = append(b, byte(c.kind()))
	switch c := c.(type) {
	case Init:
		return appendInit(b, &c)
	case PutVIP:
		b = appendVIP(b, &c.VIP)
		if c.kind() == KindPutVIPSSTP {
			b = appendVIPSSTP(b, &c.VIP)
		}
		return binary.AppendUvarint(b, c.Expect)
	case RemoveVIP:
		return appendUints(b, uint64(c.ID), c.Expect)
	case PutBackend:
		b = appendBackend(b, &c.Backend)
		switch c.kind() {
		case KindPutBackendMode:
			b = append(b, byte(c.Backend.Mode))
		case KindPutBackendSSTP:
			b = appendBackendSSTP(append(b, byte(c.Backend.Mode)), &c.Backend)
		}
		return binary.AppendUvarint(b, c.Expect)
	case SetBackendAdmin:
		return appendUints(b, uint64(c.ID), uint64(c.Admin), c.Expect)
	case RemoveBackend:
		return binary.AppendUvarint(appendBool(appendUints(b, uint64(c.ID)), c.Purge), c.Expect)
	case SetHealth:
		return appendUints(b, uint64(c.Backend), uint64(c.Class), uint64(c.Verdict), c.Previous)
	case VoidBackend:
		return appendUints(b, uint64(c.Backend), uint64(c.Class), c.Previous)
	case PutGateway:
		return binary.AppendUvarint(appendAddr(b, c.Addr), c.Expect)
	case RemoveGateway:
		return appendUints(b, uint64(c.ID), c.Expect)
	case OwnGateway:
		return binary.AppendUvarint(append(appendUints(b, uint64(c.ID)), c.Owner[:]...), c.Previous)
	case SetSettings:
		b = appendSettings(b, &c.Settings)
		if c.Settings.SourceLimit != 0 {
			b = binary.AppendUvarint(b, uint64(c.Settings.SourceLimit))
		}
		return binary.AppendUvarint(b, c.Expect)
	case AddToken:
		return appendDuration(appendString(append(b, c.Hash[:]...), c.Name), c.Life)
	case AdmitMember:
		return appendMember(append(b, c.Token[:]...), &c.Member)
	case UpdateMember:
		return appendMember(b, &c.Member)
	case RemoveMember:
		return append(b, c.ID[:]...)
	case ReplaceMember:
		return appendMember(append(b, c.Old[:]...), &c.Member)
	case PutSecret:
		return binary.AppendUvarint(appendBytes(appendString(b, c.Name), c.Sealed), c.Expect)
	case PutCertificate:
		return binary.AppendUvarint(appendCertificate(b, &c.Certificate), c.Expect)
	case RemoveCertificate:
		return binary.AppendUvarint(appendString(b, c.Name), c.Expect)
	case Learn:
		return appendLearn(b, c.Records)
	case Touch:
		return appendTouch(b, c.Records)
	case Expire:
		return appendExpire(b, c.Records)
	case Forget:
		return appendForget(b, c.Keys)
	}
	return b // Tick
}

func (r *reader) command() Command {
	switch k := Kind(r.uint8()); k {
	case KindInit:
		return r.initial()
	case KindPutVIP:
		return PutVIP{VIP: r.vip(), Expect: r.uint64()}
	case KindRemoveVIP:
		return RemoveVIP{ID: VIPID(r.uint32()), Expect: r.uint64()}
	case KindPutBackend:
		return PutBackend{Backend: r.backend(), Expect: r.uint64()}
	case KindSetBackendAdmin:
		return SetBackendAdmin{ID: BackendID(r.uint32()), Admin: AdminState(r.uint(255)), Expect: r.uint64()}
	case KindRemoveBackend:
		return RemoveBackend{ID: BackendID(r.uint32()), Purge: r.bool(), Expect: r.uint64()}
	case KindSetHealth:
		return SetHealth{Backend: BackendID(r.uint32()), Class: Class(r.uint(255)), Verdict: Verdict(r.uint(255)), Previous: r.uint64()}
	case KindVoidBackend:
		return VoidBackend{Backend: BackendID(r.uint32()), Class: Class(r.uint(255)), Previous: r.uint64()}
	case KindPutGateway:
		return PutGateway{Addr: r.addr(), Expect: r.uint64()}
	case KindRemoveGateway:
		return RemoveGateway{ID: GatewayID(r.uint32()), Expect: r.uint64()}
	case KindOwnGateway:
		return OwnGateway{ID: GatewayID(r.uint32()), Owner: r.id(), Previous: r.uint64()}
	case KindSetSettings:
		return SetSettings{Settings: r.settings(), Expect: r.uint64()}
	case KindAddToken:
		return AddToken{Hash: r.hash(), Name: r.string("name", MaxText), Life: r.duration()}
	case KindAdmitMember:
		return AdmitMember{Token: r.hash(), Member: r.member()}
	case KindUpdateMember:
		return UpdateMember{Member: r.member()}
	case KindRemoveMember:
		return RemoveMember{ID: r.id()}
	case KindReplaceMember:
		return ReplaceMember{Old: r.id(), Member: r.member()}
	case KindPutSecret:
		return PutSecret{Name: r.string("name", MaxText), Sealed: r.bytes("sealed secret", MaxSealed), Expect: r.uint64()}
	case KindPutCertificate:
		return PutCertificate{Certificate: r.certificate(), Expect: r.uint64()}
	case KindRemoveCertificate:
		return RemoveCertificate{Name: r.string("name", MaxText), Expect: r.uint64()}
	case KindLearn:
		return Learn{Records: list(r, "learned records", MaxBatch, sizeLearned, (*reader).learned)}
	case KindTouch:
		return Touch{Records: list(r, "touched records", MaxBatch, sizeTouched, (*reader).touched)}
	case KindExpire:
		return Expire{Records: list(r, "expired records", MaxBatch, sizeExpired, (*reader).expired)}
	case KindForget:
		return Forget{Keys: list(r, "keys", MaxBatch, sizeKey, (*reader).key)}
	case KindTick:
		return Tick{}
	case KindPutBackendMode:
		return PutBackend{Backend: r.backendMode(), Expect: r.uint64()}
	case KindSetSettingsLimit:
		return SetSettings{Settings: r.settingsLimit(), Expect: r.uint64()}
	case KindPutVIPSSTP:
		return PutVIP{VIP: r.vipWithSSTP(), Expect: r.uint64()}
	case KindPutBackendSSTP:
		return PutBackend{Backend: r.backendWithSSTP(), Expect: r.uint64()}
	case KindDropCertificate:
		return RemoveCertificate{Name: r.string("name", MaxText), Secret: true, Expect: r.uint64()}
	default:
		if r.err == nil {
			r.fail(fmt.Errorf("command of kind %d: %w", k, ErrUnknown))
		}
		return nil
	}
}

func appendUints(b []byte, all ...uint64) []byte {
	for _, v := range all {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func appendInit(b []byte, c *Init) []byte {
	b = append(b, c.ClusterID[:]...)
	b = append(b, c.HashKey[:]...)
	b = binary.AppendUvarint(b, uint64(c.TableSize))
	b = appendSettings(b, &c.Settings)
	b = appendMember(b, &c.First)
	b = binary.AppendUvarint(b, uint64(len(c.Secrets)))
	for i := range c.Secrets {
		b = appendSecret(b, &c.Secrets[i])
	}
	return b
}

func (r *reader) initial() Init {
	return Init{
		ClusterID: r.id(), HashKey: r.id(), TableSize: r.uint32(),
		Settings: r.settings(), First: r.member(),
		Secrets: list(r, "secrets", MaxSecrets, 3, (*reader).secret),
	}
}

// The parts of VIP, Backend, Member and Settings that a command carries; the
// snapshot adds what the Machine knows of them.

func appendVIP(b []byte, v *VIP) []byte {
	b = binary.AppendUvarint(b, uint64(v.ID))
	b = appendAddr(appendString(b, v.Name), v.Addr)
	return append(b, v.ClientBits, byte(v.SSTP))
}

func (r *reader) vip() VIP {
	return VIP{
		ID: VIPID(r.uint32()), Name: r.string("name", MaxText), Addr: r.addr(),
		ClientBits: r.uint8(), SSTP: SSTPMode(r.uint8()),
	}
}

func appendBackend(b []byte, v *Backend) []byte {
	b = appendUints(b, uint64(v.ID), uint64(v.VIP))
	b = appendAddr(appendString(b, v.Name), v.Addr)
	return appendUints(b, uint64(v.Weight), uint64(v.Limit))
}

func (r *reader) backend() Backend {
	return Backend{
		ID: BackendID(r.uint32()), VIP: VIPID(r.uint32()), Name: r.string("name", MaxText),
		Addr: r.addr(), Weight: r.uint16(), Limit: r.uint32(),
	}
}

// backendMode reads what kind 26 adds. A zero there has a form of its own, as
// in settingsLimit: each command has one form.
func (r *reader) backendMode() Backend {
	b := r.backend()
	if b.Mode = Mode(r.uint8()); b.Mode == ModeDNAT && r.err == nil {
		r.fail(errors.New("a backend of mode DNAT in the form of another mode"))
	}
	return b
}

func appendMember(b []byte, m *Member) []byte {
	b = append(b, m.ID[:]...)
	b = append(appendString(b, m.Name), byte(m.Role))
	b = appendString(appendString(b, m.Cluster), m.Gossip)
	b = binary.AppendUvarint(b, uint64(len(m.Addrs)))
	for _, a := range m.Addrs {
		b = appendAddr(b, a)
	}
	b = appendBool(appendBytes(b, m.PublicKey), m.Draining)
	return binary.AppendUvarint(b, uint64(m.Format))
}

func (r *reader) member() Member {
	return Member{
		ID: r.id(), Name: r.string("name", MaxText), Role: Role(r.uint8()),
		Cluster: r.string("address", MaxText), Gossip: r.string("address", MaxText),
		Addrs:     list(r, "addresses", MaxAddrs, 1, (*reader).addr),
		PublicKey: r.bytes("public key", 64), Draining: r.bool(), Format: r.uint16(),
	}
}

func appendSecret(b []byte, s *Secret) []byte {
	b = binary.AppendUvarint(appendString(b, s.Name), s.Version)
	return appendBytes(b, s.Sealed)
}

func (r *reader) secret() Secret {
	return Secret{Name: r.string("name", MaxText), Version: r.uint64(), Sealed: r.bytes("sealed secret", MaxSealed)}
}

func appendCertificate(b []byte, c *CertificatePlace) []byte {
	b = append(appendString(b, c.Name), c.SHA256[:]...)
	return appendString(b, c.Path)
}

func (r *reader) certificate() CertificatePlace {
	return CertificatePlace{Name: r.string("name", MaxText), SHA256: r.hash(), Path: r.string("path", MaxPath)}
}

func appendSettings(b []byte, s *Settings) []byte {
	b = binary.AppendUvarint(b, uint64(len(s.InsidePrefixes)))
	for _, p := range s.InsidePrefixes {
		b = appendPrefix(b, p)
	}
	b = binary.AppendUvarint(b, uint64(len(s.ForwardPrefixes)))
	for _, p := range s.ForwardPrefixes {
		b = appendPrefix(b, p)
	}
	b = appendDuration(b, s.AffinityTimeout)
	b = appendDuration(b, s.UnheardTimeout)
	b = appendDuration(b, s.EarnedSKTimeout)
	b = appendDuration(b, s.EarnedAuthTimeout)
	b = appendDuration(b, s.TouchInterval)
	b = appendDuration(b, s.VoidAfter)
	b = append(b, s.DownAfter, s.UpAfter)
	b = appendDuration(b, s.ProbeInterval)
	b = appendDuration(b, s.ProbeTimeout)
	b = appendDuration(b, s.UpDwell)
	b = appendDuration(b, s.Demote)
	return appendUints(b, uint64(s.NodeBudget), uint64(s.PrefixBudget))
}

func (r *reader) settings() Settings {
	return Settings{
		InsidePrefixes:  list(r, "inside prefixes", MaxPrefixes, 2, (*reader).prefix),
		ForwardPrefixes: list(r, "forward prefixes", MaxPrefixes, 2, (*reader).prefix),
		AffinityTimeout: r.duration(), UnheardTimeout: r.duration(),
		EarnedSKTimeout: r.duration(), EarnedAuthTimeout: r.duration(),
		TouchInterval: r.duration(), VoidAfter: r.duration(),
		DownAfter: r.uint8(), UpAfter: r.uint8(),
		ProbeInterval: r.duration(), ProbeTimeout: r.duration(),
		UpDwell: r.duration(), Demote: r.duration(),
		NodeBudget: uint32(r.uint(math.MaxUint32)), PrefixBudget: uint32(r.uint(math.MaxUint32)),
	}
}

func (r *reader) settingsLimit() Settings {
	s := r.settings()
	if s.SourceLimit = r.uint32(); s.SourceLimit == 0 && r.err == nil {
		r.fail(errors.New("settings without a source limit in the form of those with one"))
	}
	return s
}
