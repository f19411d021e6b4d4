package health

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const callHead = "HTTP/1.1 200 \r\nContent-Length: 18446744073709551615\r\nServer: Microsoft-HTTPAPI/2.0\r\n\r\n"

// connectAck is Call Connect Ack with SHA-256 and a nonce.
func connectAck() []byte {
	return append([]byte{0x10, 1, 0, 0x30, 0, 2, 0, 1, 0, 4, 0, 0x28, 0, 0, 0, 2}, bytes.Repeat([]byte{7}, 32)...)
}

// edited is a copy of a packet with one byte changed.
func edited(p []byte, at int, to byte) []byte {
	p = bytes.Clone(p)
	p[at] = to
	return p
}

// status is a message of one Status Info attribute: 2.2.12 and 2.2.13.
func status(kind, attribute byte, code uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x10, 1, 0, 20, 0, kind, 0, 1, 0, 2, 0, 12, 0, 0, 0, attribute}, code)
}

// rras is a server of SSTP: its web ends when the call does.
type rras struct {
	mu        sync.Mutex
	full      bool // no port is free: 503
	hangs     bool // nothing after the request
	stopped   bool // the resource is not there
	calls     []time.Time
	heads     []string // of the calls
	taken     int      // ports in use
	mostTaken int
	farewells int // calls that were ended by Call Disconnect
}

func (s *rras) set(f func(s *rras)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *rras) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func (s *rras) web(c net.Conn) {
	r := bufio.NewReader(c)
	head := ""
	for !strings.HasSuffix(head, "\r\n\r\n") {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		head += line
	}
	s.mu.Lock()
	full, hangs, stopped := s.full, s.hangs, s.stopped
	call := strings.HasPrefix(head, "SSTP_DUPLEX_POST ")
	if call {
		s.calls, s.heads = append(s.calls, time.Now()), append(s.heads, head)
	}
	s.mu.Unlock()
	switch {
	case stopped:
		io.WriteString(c, "HTTP/1.1 404 Not Found\r\n\r\n")
	case !call:
		io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\n\r\n")
	case hangs:
		io.Copy(io.Discard, r)
	case full:
		io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\n\r\n")
	default:
		s.set(func(s *rras) { s.taken++; s.mostTaken = max(s.mostTaken, s.taken) })
		bye := s.call(c, r)
		s.set(func(s *rras) {
			s.taken--
			if bye {
				s.farewells++
			}
		})
	}
}

// call takes one call and reports whether the caller said farewell.
func (s *rras) call(c net.Conn, r io.Reader) bool {
	io.WriteString(c, callHead)
	request := make([]byte, 14)
	if _, err := io.ReadFull(r, request); err != nil || !bytes.Equal(request, []byte{0x10, 1, 0, 14, 0, 1, 0, 1, 0, 1, 0, 6, 0, 1}) {
		c.Write(status(3, 1, 4))
		return false
	}
	// PPP begins at once. In one piece, because net.Pipe holds nothing.
	c.Write(append(connectAck(), 0x10, 0, 0, 12, 0xff, 3, 0xc0, 0x21, 1, 1, 0, 4))
	bye := make([]byte, 20)
	if _, err := io.ReadFull(r, bye); err != nil || !bytes.Equal(bye, status(6, 0, 0)) {
		return false
	}
	c.Write([]byte{0x10, 1, 0, 8, 0, 7, 0, 0})
	_, err := r.Read(bye)
	return err == io.EOF
}

// talks is a server that reads a head, says what a server says and closes.
func talks(say ...[]byte) web {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for line, err := r.ReadString('\n'); line != "\r\n"; line, err = r.ReadString('\n') {
			if err != nil {
				return
			}
		}
		go io.Copy(io.Discard, r)
		for _, b := range say {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
}

// silently is talks that never closes.
func silently(say ...[]byte) web {
	return func(c net.Conn) {
		talks(say...)(c)
		io.Copy(io.Discard, c)
	}
}

// overTLS is a server behind TLS.
func overTLS(w web) web {
	return func(raw net.Conn) {
		c := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{certificate()}})
		defer c.Close()
		w(c)
	}
}

func TestCallSSTP(t *testing.T) {
	head, ack := []byte(callHead), connectAck()
	ppp := []byte{0x10, 0, 0, 12, 0xff, 3, 0xc0, 0x21, 1, 1, 0, 4}
	answer := func(p ...byte) web { return talks(head, p) }
	for _, c := range []struct {
		name   string
		web    web
		note   Note
		detail string
	}{
		{"ack", answer(ack...), NoteCall, ""},
		{"ack of SHA-1 alone", answer(edited(ack, 15, 1)...), NoteCall, ""},
		{"ack with reserved bits", answer(edited(edited(edited(ack, 1, 0xff), 2, 0xf0), 8, 0xff)...), NoteCall, ""},
		{"ack in pieces", talks(head[:20], head[20:], ack[:3], ack[3:40], ack[40:]), NoteCall, ""},
		{"head and ack at once", silently(append(bytes.Clone(head), ack...)), NoteCall, ""},
		{"ack, then no farewell", silently(head, ack), NoteCall, ""},
		{"ack, then endless data", talks(head, ack, bytes.Repeat(ppp, 4000)), NoteCall, ""},
		{"ack, then rubbish", talks(head, ack, []byte("rubbish")), NoteCall, ""},
		{"length in lower case", talks([]byte("HTTP/1.1 200 OK\r\ncontent-length:18446744073709551615\r\n\r\n"), ack), NoteCall, ""},
		{"full", talks([]byte("HTTP/1.1 503 Service Unavailable\r\n\r\n")), NoteCallRefused, "HTTP/1.1 503 Service Unavailable"},
		{"not for us", talks([]byte("HTTP/1.1 401 x\r\n\r\n")), NoteCallRefused, "HTTP/1.1 401 x"},
		{"2000", talks([]byte("HTTP/1.1 2000 x\r\n\r\n")), NoteCallRefused, "HTTP/1.1 2000 x"},
		{"no HTTP", talks([]byte("SSH-2.0-x\x1b[2J\r\n")), NoteCallRefused, `SSH-2.0-x\x1b[2J`},
		{"another length", talks([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), ack), NoteCallBroken, "Content-Length 0"},
		{"no length", talks([]byte("HTTP/1.1 200 OK\r\n\r\n"), ack), NoteCallBroken, "Content-Length "},
		{"a long line", talks(bytes.Repeat([]byte("x"), 9000)), NoteCallBroken, "no line"},
		{"an endless head", talks([]byte("HTTP/1.1 200 OK\r\n"), bytes.Repeat([]byte("X: y\r\n"), 9000)), NoteCallBroken, "more than 16384 bytes"},
		{"half a head", talks(head[:30]), NoteCallSilent, "the server closed the connection"},
		{"nothing", talks(), NoteCallSilent, "the server closed the connection"},
		{"no answer", silently(), NoteCallSilent, "no answer within the timeout"},
		{"half a head, then no more", silently(head[:30]), NoteCallSilent, "no answer within the timeout"},
		{"200, then no more", silently(head), NoteCallSilent, "no answer within the timeout"},
		{"200, then the end", talks(head), NoteCallSilent, "the server closed the connection"},
		{"half an ack", talks(head, ack[:40]), NoteCallSilent, "the server closed the connection"},
		{"nak", answer(status(3, 1, 4)...), NoteCallNak, "Call Connect Nak, status 4 of attribute 1"},
		{"nak without attributes", answer(0x10, 1, 0, 8, 0, 3, 0, 0), NoteCallNak, "Call Connect Nak"},
		{"abort", answer(status(5, 3, 8)...), NoteCallNak, "Call Abort, status 8 of attribute 3"},
		{"ack without nonce", answer(0x10, 1, 0, 8, 0, 2, 0, 0), NoteCallBroken, "Call Connect Ack without"},
		{"ack without hash", answer(edited(ack, 15, 0)...), NoteCallBroken, "Call Connect Ack without"},
		{"ack with another attribute", answer(edited(ack, 9, 2)...), NoteCallBroken, "Call Connect Ack without"},
		{"ack with two", answer(edited(ack, 7, 2)...), NoteCallBroken, "Call Connect Ack without"},
		{"ack of another length", answer(append(edited(ack, 3, 0x31), 0)...), NoteCallBroken, "Call Connect Ack without"},
		{"attribute of another length", answer(edited(ack, 11, 0x27)...), NoteCallBroken, "Call Connect Ack without"},
		{"data first", answer(ppp...), NoteCallBroken, "a data packet"},
		{"another message", answer(0x10, 1, 0, 8, 0, 8, 0, 0), NoteCallBroken, "message type 8"},
		{"another version", answer(edited(ack, 0, 0x11)...), NoteCallBroken, "no packet of SSTP"},
		{"a packet without a length", answer(edited(ack, 3, 3)...), NoteCallBroken, "no packet of SSTP"},
		{"a message without a type", answer(edited(ack, 3, 7)...), NoteCallBroken, "no packet of SSTP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
				defer cancel()
				start := time.Now()
				v, err := callSSTP(ctx, serve(c.web), netip.Addr{}, server1, offloaded)
				if err != nil || v.note != c.note || !strings.HasPrefix(v.detail, c.detail) || (c.detail == "") != (v.detail == "") {
					t.Errorf("%v %q, %v; want %v %q", v.note, v.detail, err, c.note, c.detail)
				}
				if d := time.Since(start); d > callTimeout+farewell {
					t.Errorf("took %v", d)
				}
				if hint := (&CallReport{Note: v.note, Detail: v.detail}).Hint(); (hint == "") != (v.note == NoteCall) || !strings.Contains(hint, c.detail) {
					t.Errorf("hint %q", hint)
				}
			})
		})
	}
	for _, err := range []error{syscall.EADDRNOTAVAIL, syscall.EMFILE} {
		if v, got := callSSTP(t.Context(), fails(err), netip.Addr{}, server1, offloaded); got == nil {
			t.Errorf("%v became %v", err, v.note)
		}
	}
	if v, err := callSSTP(t.Context(), fails(syscall.ECONNREFUSED), netip.Addr{}, server1, offloaded); err != nil || v.note != NoteRefused ||
		(&CallReport{Note: v.note}).Hint() == "" {
		t.Errorf("%v, %v", v, err)
	}
}

// A whole call: heads and messages as a client's, a port taken and given back.
func TestCallWhole(t *testing.T) {
	s := &rras{}
	leaf := sha256.Sum256(certificate().Certificate[0])
	secret := overTLS(s.web)
	for i, c := range []struct {
		check  SSTPCheck
		web    web
		server netip.Addr
		host   string
	}{
		{offloaded, s.web, server1, "198.51.100.11"},
		{passed, secret, server2, `\[2001:db8::12\]`},
		{SSTPCheck{TLS: true, Port: 443, Leaf: leaf}, secret, server1, "198.51.100.11"},
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			v, err := callSSTP(t.Context(), serve(c.web), netip.Addr{}, c.server, c.check)
			if err != nil || v.note != NoteCall || time.Since(start) > farewell/2 {
				t.Errorf("%+v, %v after %v", v, err, time.Since(start))
			}
			synctest.Wait()
			want := `^SSTP_DUPLEX_POST /sra_\{BA195980-CD49-458b-9E23-C84EE0ADCD75\}/ HTTP/1\.1\r\n` +
				`Content-Length: 18446744073709551615\r\nHost: ` + c.host +
				`\r\nSSTPCORRELATIONID: \{[0-9A-F]{8}-[0-9A-F]{4}-4[0-9A-F]{3}-[89AB][0-9A-F]{3}-[0-9A-F]{12}\}\r\n\r\n$`
			if !regexp.MustCompile(want).MatchString(s.heads[i]) {
				t.Errorf("%q", s.heads[i])
			}
			if s.taken != 0 || s.farewells != i+1 {
				t.Errorf("%d ports in use, %d farewells", s.taken, s.farewells)
			}
		})
	}
	if s.heads[0] == s.heads[2] {
		t.Error("two calls have the same correlation ID")
	}
	wrong := SSTPCheck{TLS: true, Port: 443, Leaf: [32]byte{1}}
	if v, err := callSSTP(t.Context(), serve(secret), netip.Addr{}, server1, wrong); v.note != NoteOtherLeaf || err != nil || s.count() != 3 {
		t.Errorf("another certificate: %v, %v, %d calls", v.note, err, s.count())
	}
}

// acked is a dumb reading of what a server must have said for a call to count.
func acked(b []byte) bool {
	lines, length := 0, ""
	for {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return false
		}
		b = rest
		text := strings.TrimSuffix(string(line), "\r")
		if lines++; lines == 1 && text != "HTTP/1.1 200" && !strings.HasPrefix(text, "HTTP/1.1 200 ") {
			return false
		}
		text = strings.ToLower(text)
		if text == "" {
			break
		}
		if value, ok := strings.CutPrefix(text, "content-length:"); ok {
			length = strings.TrimSpace(value)
		}
	}
	return length == "18446744073709551615" && len(b) >= 48 && b[0] == 0x10 && b[1]&1 == 1 && b[2]&15 == 0 && b[3] == 48 &&
		bytes.Equal(b[4:8], []byte{0, 2, 0, 1}) && b[9] == 4 && b[10]&15 == 0 && b[11] == 40 && b[15]&3 != 0
}

func FuzzSSTPAnswer(f *testing.F) {
	head, ack := []byte(callHead), connectAck()
	f.Add(append(bytes.Clone(head), ack...))
	f.Add(append(bytes.Clone(head), status(3, 1, 4)...))
	f.Add(append(bytes.Clone(head), status(5, 3, 8)...))
	f.Add(append(bytes.Clone(head), edited(ack, 11, 0x27)...))
	f.Add(append(bytes.Clone(head), 0x10, 0, 0, 5, 0))
	f.Add([]byte("HTTP/1.1 503 Service Unavailable\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 \nContent-Length: 18446744073709551615\n\n\x10\x01\x00\x08\x00\x03\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		source := bytes.NewReader(b)
		var sent bytes.Buffer
		v := converse(newCallReader(source), &sent)
		if read := len(b) - source.Len(); read > maxCallBytes {
			t.Fatalf("read %d bytes", read)
		}
		switch v.note {
		case NoteCall:
			if v.detail != "" {
				t.Fatalf("detail %q", v.detail)
			}
		case NoteCallRefused, NoteCallNak, NoteCallSilent, NoteCallBroken:
			if len(v.detail) > 4*maxDetail || v.detail == "" && v.note != NoteCallRefused {
				t.Fatalf("detail %q", v.detail)
			}
			for _, r := range v.detail {
				if r < ' ' || r == 0x7f {
					t.Fatalf("detail %q", v.detail)
				}
			}
		default:
			t.Fatalf("note %v", v.note)
		}
		if acked(b) != (v.note == NoteCall) && len(b) < maxStatusLine {
			t.Fatalf("%v of %q", v.note, b)
		}
		if sent.Len() != 0 && !bytes.Equal(sent.Bytes(), callRequest) {
			t.Fatalf("sent %x", sent.Bytes())
		}
		if v.note == NoteCallRefused && sent.Len() != 0 {
			t.Fatal("went on after a refusal")
		}
	})
}

func TestCorrelation(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		seen[correlation()] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d different of 100", len(seen))
	}
}
