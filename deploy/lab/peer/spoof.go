package peer

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// SpoofConfig is a burst of forged traffic to the VIP.
type SpoofConfig struct {
	VIP     netip.Addr   `json:"vip"`
	Sources netip.Prefix `json:"sources"` // IPv4; nobody there answers
	Packets int          `json:"packets"`
	Rate    int          `json:"rate"` // packets a second
}

const (
	spoofBatch   = 50 // packets between two looks at the clock
	ipHeaderLen  = 20
	udpHeaderLen = 8
	protoUDP     = 17
)

// Spoof sends the burst: SA_INITs to both ports, and IKE_AUTH, ESP in UDP,
// keepalives, first fragments and plain garbage, each with a random source.
func Spoof(ctx context.Context, cfg SpoofConfig) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("open raw socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Addr: cfg.VIP.As4()}
	start := time.Now()
	for n := 0; n < cfg.Packets; n++ {
		if n%spoofBatch == 0 {
			due := start.Add(time.Duration(n) * time.Second / time.Duration(max(cfg.Rate, 1)))
			if !wait(ctx, max(time.Until(due), 0)) {
				return nil
			}
		}
		b := forged(n, randomIn(cfg.Sources), cfg.VIP)
		if err := unix.Sendto(fd, b, 0, to); err != nil && err != unix.ENOBUFS {
			return fmt.Errorf("send forged packet: %w", err)
		}
	}
	return nil
}

// randomIn draws an address of an IPv4 prefix.
func randomIn(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	v := binary.BigEndian.Uint32(a[:]) | rand.Uint32()>>uint(p.Bits())
	binary.BigEndian.PutUint32(a[:], v)
	return netip.AddrFrom4(a)
}

// forged makes the n-th packet: half of all are IKE_SA_INIT.
func forged(n int, from, to netip.Addr) []byte {
	port, more := uint16(4500), false
	var payload []byte
	switch n % 12 {
	case 0, 1, 2, 3:
		port, payload = 500, saInit(randomSPI(), 0, flagInitiator)
	case 4, 5, 6:
		payload = onPort4500(saInit(randomSPI(), 0, flagInitiator))
	case 7: // IKE_AUTH of nobody
		h := header{spiI: randomSPI(), spiR: randomSPI(), exchange: exchangeAuth, flags: flagInitiator, messageID: 1}
		payload = onPort4500(skMessage(h, secret{round: 1, rounds: 1, spi: 1}, 0))
	case 8:
		payload = data{spi: randomESPSPI(), seq: uint64(n)}.encode(0)
	case 9:
		payload = keepalive
	case 10: // the first fragment of something that never goes on
		payload, more = onPort4500(random(508)), true
	case 11:
		port, payload = 500, random(rand.IntN(200))
	}
	return udpPacket(netip.AddrPortFrom(from, uint16(1024+rand.IntN(60000))), netip.AddrPortFrom(to, port), payload, more)
}

// udpPacket builds an IPv4 packet with a full UDP checksum (none for a first
// fragment: 0 is allowed, RFC 768).
func udpPacket(from, to netip.AddrPort, payload []byte, more bool) []byte {
	b := make([]byte, ipHeaderLen+udpHeaderLen, ipHeaderLen+udpHeaderLen+len(payload))
	b = append(b, payload...)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], uint16(1+rand.IntN(65535)))
	if more {
		b[6] = 0x20
	}
	b[8], b[9] = 64, protoUDP
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	udp := b[ipHeaderLen:]
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	if !more {
		sum := onesSum(b[12:20], protoUDP+uint32(len(udp)))
		c := ^fold(onesSum(udp, sum))
		if c == 0 {
			c = 0xffff
		}
		binary.BigEndian.PutUint16(udp[6:], c)
	}
	return b
}

func onesSum(b []byte, sum uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
