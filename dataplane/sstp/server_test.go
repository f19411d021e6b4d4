package sstp

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"strings"
	"testing"
)

func TestOffload(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		f := newFarEnd(t, nil)
		b := newBed(t, oneTarget(t, f), nil)
		config := trusting()
		config.MinVersion, config.MaxVersion = version, version
		config.NextProtos = []string{"h2", "http/1.1"}
		c := b.mustDial(config)
		if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
			t.Errorf("negotiated %q", p)
		}
		c.send(strings.Replace(post, "Host: ", "User-Agent: x\r\nCookie: a=1\r\nhost:", 1) + "early")
		if got, want := c.answer(), ok200; got != want {
			t.Errorf("answer %q, want %q", got, want)
		}
		want := "SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n" +
			"Host: vpn.example.test\r\nCookie: a=1\r\nSSTPCORRELATIONID: {7BFABA44-D234-AC43-46B61CA2}\r\n\r\n"
		if got := <-f.heads; got != want {
			t.Errorf("head %q, want %q", got, want)
		}
		c.want("early")
		c.send("ping")
		c.want("ping")
		bulk(t, c, 20<<20)
		b.until("counters of the sweep", func() bool { return b.metric(b.metrics.bytes[0]) >= 20<<20 })
		if all := b.Sessions(); len(all) != 1 || all[0].In < 20<<20 || all[0].Out < 20<<20 || all[0].Target != "rras1" || all[0].Certificate != "a" ||
			!strings.HasPrefix(all[0].TLS, "TLS 1.") {
			t.Errorf("sessions %+v", all)
		}
	}
}

// bulk sends n bytes and wants them back.
func bulk(t *testing.T, c *client, n int) {
	t.Helper()
	sent, got := sha256.New(), sha256.New()
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.MultiWriter(c.Conn, sent), rand.Reader, int64(n))
		done <- err
	}()
	if _, err := io.CopyN(got, c.r, int64(n)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Fatal("other bytes came back")
	}
}

// The server must show the certificate that the client was shown; else nothing
// is relayed, and somebody is told.
func TestReencrypt(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		shared, other := newCert(t, "a", ecdsaKey(t), name), newCert(t, "b", ecdsaKey(t), name)
		f := newFarEnd(t, func(f *farEnd) {
			f.config = &tls.Config{Certificates: []tls.Certificate{*shared.TLS}, MaxVersion: version}
		})
		d := Desired{Certificates: []Certificate{shared}, Targets: []Target{{Slot: 1, VIP: 3, Name: "rras1", Addr: f.addr(), Certificate: "a"}}}
		b := newBed(t, d, func(v *Service) { v.Mode = Reencrypt })
		bulk(t, b.mustDial(nil).open(), 5<<20)

		f.config.Certificates[0] = *other.TLS // the same name, the same authority
		c := b.mustDial(nil)
		c.send(post)
		if got := c.answer(); !strings.HasPrefix(got, "HTTP/1.1 502 ") {
			t.Errorf("answer %q", got)
		}
		c.gone()
		alarms := b.Status().Alarms
		if len(alarms) != 1 || alarms[0].Target != "rras1" || alarms[0].Slot != 1 || !strings.Contains(alarms[0].Text, "run 'vpnlb sstp rras rras1'") {
			t.Errorf("alarms %+v", alarms)
		}

		f.config.Certificates[0] = *shared.TLS
		b.mustDial(nil).open()
		if alarms := b.Status().Alarms; len(alarms) != 0 {
			t.Errorf("alarms %+v", alarms)
		}
	}
}

// Each side may stop to send, and still receive.
func TestHalfClose(t *testing.T) {
	for name, mode := range map[string]Mode{"offload": Offload, "reencrypt": Reencrypt} {
		t.Run(name, func(t *testing.T) {
			cert := newCert(t, "a", ecdsaKey(t), "vpn.example.test")
			whole := strings.Repeat("0123456789abcdef", 1<<16)
			got := make(chan string, 1)
			f := newFarEnd(t, func(f *farEnd) {
				if mode == Reencrypt {
					f.config = &tls.Config{Certificates: []tls.Certificate{*cert.TLS}}
				}
				f.script = func(r *bufio.Reader, c far) {
					b, err := io.ReadAll(r) // up to the client's end
					if err != nil {
						t.Error(err)
					}
					got <- string(b)
					io.WriteString(c, whole)
					c.CloseWrite()
				}
			})
			b := newBed(t, Desired{Certificates: []Certificate{cert}, Targets: []Target{{Slot: 1, VIP: 3, Name: "rras1", Addr: f.addr(), Certificate: "a"}}},
				func(v *Service) { v.Mode = mode })
			c := b.mustDial(nil).open()
			c.send("last words")
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if s := <-got; s != "last words" {
				t.Errorf("server got %q", s)
			}
			back, err := io.ReadAll(c.r)
			if err != nil || string(back) != whole { // crypto/tls tells a missing close_notify by an error
				t.Errorf("%d bytes and %v after the half close", len(back), err)
			}
			b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
			if n := b.metric(b.metrics.ended.WithLabelValues(endDone)); n != 1 {
				t.Errorf("%v ended well", n)
			}
		})
	}
}

// The server's end comes first, the client goes on sending.
func TestServerClosesFirst(t *testing.T) {
	got := make(chan string, 1)
	f := newFarEnd(t, func(f *farEnd) {
		f.script = func(r *bufio.Reader, c far) {
			io.WriteString(c, "bye")
			c.CloseWrite()
			b, _ := io.ReadAll(r)
			got <- string(b)
		}
	})
	b := newBed(t, oneTarget(t, f), nil)
	c := b.mustDial(nil).open()
	if all, err := io.ReadAll(c.r); err != nil || string(all) != "bye" {
		t.Fatalf("got %q, %v", all, err)
	}
	c.send("still here")
	c.CloseWrite()
	if s := <-got; s != "still here" {
		t.Errorf("server got %q", s)
	}
}

// A connection that breaks at one side breaks at the other.
func TestBreaks(t *testing.T) {
	broken := make(chan error, 1)
	f := newFarEnd(t, func(f *farEnd) {
		f.script = func(r *bufio.Reader, c far) {
			_, err := r.ReadByte()
			broken <- err
		}
	})
	b := newBed(t, oneTarget(t, f), nil)
	c := b.mustDial(nil).open()
	c.tcp.SetLinger(0)
	c.tcp.Close() // a reset, without close_notify
	if err := <-broken; err == nil {
		t.Error("the server did not notice")
	}
	b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
	if n := b.metric(b.metrics.ended.WithLabelValues(endClient)); n != 1 {
		t.Errorf("%v ended by the client", n)
	}
}

func TestHeadsRefused(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	const notFound = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	for word, request := range map[string]string{
		"method":            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"monitor":           "HEAD /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\nHost: h\r\n\r\n",
		"too_large":         post[:len(post)-2] + strings.Repeat("x", 9000),
		"transfer_encoding": strings.Replace(post, "Host:", "Transfer-Encoding: chunked\r\nHost:", 1),
		"path":              strings.Replace(post, "sra_{BA", "sra_{BB", 1) + post,
	} {
		c := b.mustDial(nil)
		c.send(request)
		if all, err := io.ReadAll(c.r); err != nil || string(all) != notFound {
			t.Errorf("%s: answer %q, %v", word, all, err)
		}
		if n := b.metric(b.metrics.heads.WithLabelValues(word)); n != 1 {
			t.Errorf("%s counted %v times", word, n)
		}
	}
	if n := f.conns.Load(); n != 0 {
		t.Errorf("the server got %d connections", n)
	}
}

// A second request is no request: it is the stream's.
func TestPipelinedRequest(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	c := b.mustDial(nil)
	c.send(post + post)
	c.answer()
	c.want(post)
	if n := f.conns.Load(); n != 1 {
		t.Errorf("the server got %d connections", n)
	}
}

func TestDecoy(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), func(v *Service) { v.Decoy = Decoy{Status: 200, Type: "text/html", Body: []byte("<p>hello")} })
	c := b.mustDial(nil)
	c.send("GET / HTTP/1.1\r\n\r\n")
	want := "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<p>hello"
	if all, err := io.ReadAll(c.r); err != nil || string(all) != want {
		t.Errorf("answer %q, %v", all, err)
	}
}

// What a server answers but a 200 goes to the client canonically; what is no
// answer, or no server, is a 502.
func TestServerSaysNo(t *testing.T) {
	for _, c := range []struct{ answer, want, class, ended string }{
		{"HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 503 \r\n", "5xx", endStatus},
		{"HTTP/1.1 401 \r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 401 \r\n", "4xx", endStatus},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 502 \r\n", "bad", endResponse},
		{"SSH-2.0-x\r\n", "HTTP/1.1 502 \r\n", "bad", endResponse},
		{strings.Repeat("x", 9000), "HTTP/1.1 502 \r\n", "bad", endResponse},
	} {
		f := newFarEnd(t, func(f *farEnd) { f.answer = c.answer })
		b := newBed(t, oneTarget(t, f), nil)
		to := b.mustDial(nil)
		to.send(post)
		want := c.want + "Content-Length: 0\r\nConnection: close\r\n\r\n"
		if all, err := io.ReadAll(to.r); err != nil || string(all) != want {
			t.Errorf("%.20q: answer %q, %v", c.answer, all, err)
		}
		to.Close()
		b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
		if n := b.metric(b.metrics.responses.WithLabelValues(c.class)) + b.metric(b.metrics.ended.WithLabelValues(c.ended)); n != 2 {
			t.Errorf("%.20q: counted %v times", c.answer, n)
		}
	}
}

func TestServerNotReached(t *testing.T) {
	f := newFarEnd(t, nil)
	f.ln.Close()
	b := newBed(t, oneTarget(t, f), nil)
	c := b.mustDial(nil)
	c.send(post)
	if got := c.answer(); !strings.HasPrefix(got, "HTTP/1.1 502 ") {
		t.Errorf("answer %q", got)
	}
	b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
	if n := b.metric(b.metrics.ended.WithLabelValues(endDial)); n != 1 {
		t.Errorf("counted %v times", n)
	}
}
