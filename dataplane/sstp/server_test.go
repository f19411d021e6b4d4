package sstp

import (
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
