package bench

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// What passes on a call, in the words of [MS-SSTP] 2.2: a header of four bytes (version,
// control bit, length with the header), then a control message or a PPP frame.
const (
	headerLen  = 4
	frameLen   = 1500 // of a PPP frame at its usual largest
	packetLen  = headerLen + frameLen
	longestLen = 4095 // of a packet: the length has 12 bits

	connectRequest = 1
	connectAck     = 2
	callConnected  = 4
	echoRequest    = 8
	echoResponse   = 9

	path      = "/sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/"
	unlimited = "18446744073709551615" // Content-Length, both ways
	headLimit = 4096
)

// What the client asks the origin for, in the first byte behind the PPP header of a
// packet; eight bytes that count follow.
const (
	askEcho = 'E' // this packet, back
	askDown = 'D' // so many packets
	askUp   = 'U' // one packet as soon as so many have come
)

// request is what a client of Windows sends first ([MS-SSTP] 3.2.4.1).
var request = []byte("SSTP_DUPLEX_POST " + path + " HTTP/1.1\r\n" +
	"Content-Length: " + unlimited + "\r\n" +
	"Host: vpn.example.com\r\n" +
	"SSTPCORRELATIONID: {7B8A2C64-53F0-4E61-9D8F-0B4C5E2A91D3}\r\n\r\n")

var response = []byte("HTTP/1.1 200 \r\n" +
	"Content-Length: " + unlimited + "\r\n" +
	"Server: Microsoft-HTTPAPI/2.0\r\n" +
	"Date: Tue, 24 Nov 2026 20:00:00 GMT\r\n\r\n")

// readHead reads through the empty line and wants the first line to begin so.
func readHead(r *bufio.Reader, first string) error {
	for size := 0; size <= headLimit; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read a head: %w", err)
		}
		if size == 0 && !bytes.HasPrefix(line, []byte(first)) {
			return fmt.Errorf("a head begins %q, want %q", line, first)
		}
		if size += len(line); len(line) == 2 {
			return nil
		}
	}
	return fmt.Errorf("a head is longer than %d bytes", headLimit)
}

// readPacket gives the next packet, valid until the next read.
func readPacket(r *bufio.Reader) ([]byte, error) {
	header, err := r.Peek(headerLen)
	if err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(header[2:]))
	if header[0] != 0x10 || header[1]&^1 != 0 || n < headerLen || n > longestLen {
		return nil, fmt.Errorf("% x is no header of SSTP", header)
	}
	p, err := r.Peek(n)
	if err != nil {
		return nil, fmt.Errorf("read a packet of %d bytes: %w", n, err)
	}
	_, err = r.Discard(n)
	return p, err
}

func isControl(packet []byte) bool { return packet[1]&1 != 0 }

// controlType gives 0 for a packet that is no control message.
func controlType(packet []byte) uint16 {
	if !isControl(packet) || len(packet) < 8 {
		return 0
	}
	return binary.BigEndian.Uint16(packet[4:])
}

// control builds a control message of one attribute, or of none (id 0).
func control(kind uint16, id byte, value []byte) []byte {
	p := []byte{0x10, 1, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(p[4:], kind)
	if id != 0 {
		p[7] = 1
		p = append(p, 0, id, 0, 0)
		binary.BigEndian.PutUint16(p[10:], uint16(4+len(value)))
		p = append(p, value...)
	}
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	return p
}

// data builds a packet of size bytes that asks for something, with the PPP header of an
// IPv4 packet.
func data(size int, ask byte, count uint64) []byte {
	p := make([]byte, size)
	copy(p, []byte{0x10, 0, 0, 0, 0xff, 0x03, 0x00, 0x21, ask})
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	binary.BigEndian.PutUint64(p[9:], count)
	return p
}

// smallest packet that can ask.
const smallestAsk = 17

// asked reads what a packet of data asks for.
func asked(packet []byte) (byte, uint64, error) {
	if isControl(packet) || len(packet) < smallestAsk {
		return 0, 0, fmt.Errorf("a packet of %d bytes asks for nothing", len(packet))
	}
	return packet[8], binary.BigEndian.Uint64(packet[9:]), nil
}

// batchPackets fill what one write takes: close to 64 KiB.
const batchPackets = 43

var batch = bytes.Repeat(data(packetLen, 0, 0), batchPackets)

// sendPackets writes full packets, so many in one write.
func sendPackets(w io.Writer, packets uint64, perWrite int) error {
	for packets != 0 {
		n := min(packets, uint64(perWrite))
		if _, err := w.Write(batch[:n*packetLen]); err != nil {
			return fmt.Errorf("send bulk: %w", err)
		}
		packets -= n
	}
	return nil
}

// takePackets reads so many full packets, whatever they hold.
func takePackets(r *bufio.Reader, c net.Conn, packets uint64, buf []byte) error {
	left := packets * packetLen
	for left != 0 {
		n := min(uint64(r.Buffered()), left)
		if n != 0 {
			if _, err := r.Discard(int(n)); err != nil {
				return err
			}
		} else {
			// Past the reader: it is empty, and its buffer is small.
			got, err := c.Read(buf[:min(uint64(len(buf)), left)])
			if err != nil {
				return fmt.Errorf("take bulk, %d bytes before the end: %w", left, err)
			}
			n = uint64(got)
		}
		left -= n
	}
	return nil
}

// openCall does what comes between the heads and the first packet of data. The origin
// looks at neither the hash nor the MAC: the relay compares the hash.
func openCall(w io.Writer, r *bufio.Reader, leaf []byte) error {
	if _, err := w.Write(control(connectRequest, 1, []byte{0, 1})); err != nil {
		return fmt.Errorf("send a call connect request: %w", err)
	}
	ack, err := readPacket(r)
	if err != nil {
		return fmt.Errorf("read the call connect ack: %w", err)
	}
	if controlType(ack) != connectAck || len(ack) != 48 {
		return fmt.Errorf("% x is no call connect ack", ack)
	}
	binding := make([]byte, 100)
	copy(binding, ack[12:16]) // hash protocol
	copy(binding[4:], ack[16:48])
	hash := sha256.Sum256(leaf)
	copy(binding[36:], hash[:])
	if _, err := w.Write(control(callConnected, 3, binding)); err != nil {
		return fmt.Errorf("send call connected: %w", err)
	}
	return nil
}
