package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/ike"
)

// checkOut: is it a packet from or to an address, and are its sums right? It may carry a
// tag.
func checkOut(out []byte, want netip.Addr, source bool) error {
	at := 14
	if kind := out[12:]; len(out) > 18 && (binary.BigEndian.Uint16(kind) == etherVLAN || binary.BigEndian.Uint16(kind) == etherService) {
		at = 18
	}
	var got netip.Addr
	var sum uint64
	var payload []byte
	switch {
	case want.Is4() && len(out) >= at+28:
		ip := out[at:]
		if ones(sumBytes(ip[:20])) != 0xffff {
			return errors.New("the header's checksum is wrong")
		}
		got, _ = netip.AddrFromSlice(ip[16:20])
		if source {
			got, _ = netip.AddrFromSlice(ip[12:16])
		}
		payload, sum = ip[20:], sumBytes(ip[12:20])
	case want.Is6() && len(out) >= at+48:
		ip := out[at:]
		got, _ = netip.AddrFromSlice(ip[24:40])
		if source {
			got, _ = netip.AddrFromSlice(ip[8:24])
		}
		payload, sum = ip[40:], sumBytes(ip[8:40])
	default:
		return fmt.Errorf("%d bytes came out", len(out))
	}
	if got != want {
		return fmt.Errorf("it goes %s %s, want %s", map[bool]string{true: "as from", false: "to"}[source], got, want)
	}
	if ones(sum+17+uint64(len(payload))+sumBytes(payload)) != 0xffff {
		return errors.New("the UDP checksum is wrong")
	}
	return nil
}

// Ethertypes of tags.
const (
	etherVLAN    = 0x8100
	etherService = 0x88a8
)

// checkFrame is an IKE_SA_INIT message from port 500 to port 500 (RFC 7296 section 3.1):
// a request, or an answer, which is no evidence of anything.
func checkFrame(at *entrance, from, to netip.Addr, answer bool) []byte {
	h := ike.Header{InitiatorSPI: 1, NextPayload: ike.SecurityAssoc, Version: ike.MajorVersion << 4, Exchange: ike.SAInit,
		Flags: ike.FlagInitiator, Length: ike.HeaderLen}
	if answer {
		h.Flags, h.ResponderSPI = ike.FlagResponse, 1
	}
	udp := make([]byte, 8, 8+ike.HeaderLen)
	binary.BigEndian.PutUint16(udp[0:], ike.Port)
	binary.BigEndian.PutUint16(udp[2:], ike.Port)
	binary.BigEndian.PutUint16(udp[4:], 8+ike.HeaderLen)
	udp = h.Append(udp)
	src, dst := from.AsSlice(), to.AsSlice()
	sum := ones(sumBytes(src) + sumBytes(dst) + 17 + uint64(len(udp)) + sumBytes(udp))
	if sum = ^sum; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	frame := append(at.mac[:], 0, 0, 0, 0, 0, 0)
	if at.tag != 0 {
		kind := uint16(etherVLAN)
		if at.tag&vlanService != 0 {
			kind = etherService
		}
		frame = binary.BigEndian.AppendUint16(frame, kind)
		frame = binary.BigEndian.AppendUint16(frame, at.tag&^vlanService)
	}
	if from.Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, 17
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
		copy(ip[12:], src)
		copy(ip[16:], dst)
		binary.BigEndian.PutUint16(ip[10:], ^ones(sumBytes(ip)))
		return append(append(append(frame, 8, 0), ip...), udp...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, 17, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
	copy(ip[8:], src)
	copy(ip[24:], dst)
	return append(append(append(frame, 0x86, 0xdd), ip...), udp...)
}

// sumBytes adds big-endian 16-bit words, ones folds them (RFC 1071).
func sumBytes(b []byte) (sum uint64) {
	for i, x := range b {
		sum += uint64(x) << (8 * (1 - i%2))
	}
	return sum
}

func ones(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
