package peer

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"
)

// Target is a VIP and who is said to send to it.
type Target struct {
	VIP     netip.Addr   `json:"vip"`
	Sources netip.Prefix `json:"sources"` // nobody there answers
}

// SpoofConfig is a burst of forged traffic.
type SpoofConfig struct {
	Targets []Target `json:"targets"` // in turns
	Packets int      `json:"packets"`
	Rate    int      `json:"rate"` // packets a second
}

const spoofBatch = 50 // packets between two looks at the clock

// Spoof sends the burst: SA_INITs to both ports, and IKE_AUTH, ESP with and
// without UDP, keepalives, fragments first and later, SYNs and plain garbage, each with a
// random source.
func Spoof(ctx context.Context, cfg SpoofConfig) error {
	raw, err := newRawSender()
	if err != nil {
		return err
	}
	defer raw.close()
	return paced(ctx, cfg.Packets, cfg.Rate, func(n int) error {
		t := cfg.Targets[n%len(cfg.Targets)]
		return raw.send(t.VIP, forged(n/len(cfg.Targets), randomIn(t.Sources), t.VIP))
	})
}

// paced calls send at a rate; the end of ctx ends it without an error.
func paced(ctx context.Context, packets, rate int, send func(n int) error) error {
	start := time.Now()
	for n := range packets {
		if n%spoofBatch == 0 {
			due := start.Add(time.Duration(n) * time.Second / time.Duration(max(rate, 1)))
			if !wait(ctx, max(time.Until(due), 0)) {
				return nil
			}
		}
		if err := send(n); err != nil {
			return err
		}
	}
	return nil
}

const forgedKinds = 15

// forged makes the n-th packet: nearly half of all are IKE_SA_INIT.
func forged(n int, from, to netip.Addr) []byte {
	port, part := uint16(4500), piece{}
	var payload []byte
	switch n % forgedKinds {
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
		payload, part = onPort4500(random(508)), piece{id: rand.Uint32() | 1, more: true}
	case 11: // a later one of something that never began
		return ipPacket(from, to, protoUDP, piece{id: rand.Uint32() | 1, offset: 1480}, random(64))
	case 12:
		return ipPacket(from, to, protoESP, piece{}, random(96))
	case 13:
		return ipPacket(from, to, protoTCP, piece{}, syn(netip.AddrPortFrom(from, randomPort()), netip.AddrPortFrom(to, tcpPort)))
	case 14:
		port, payload = 500, random(rand.IntN(200))
	}
	d := datagram(netip.AddrPortFrom(from, randomPort()), netip.AddrPortFrom(to, port), payload)
	return ipPacket(from, to, protoUDP, part, d)
}
