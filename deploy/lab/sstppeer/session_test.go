package sstppeer

import (
	"errors"
	"testing"
	"time"
)

// desk is a session without a network: what it says lies on the desk.
type desk struct {
	*session
	t    *testing.T
	now  time.Time
	said []message
}

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, now: time.Unix(1000, 0)}
	send := func(p []byte) {
		m, err := parseMessage(packet{raw: p, control: true})
		if err != nil {
			t.Fatal(err)
		}
		d.said = append(d.said, m)
	}
	trusted := func(byte, [32]byte) bool { return true }
	d.session = newSession(sessionConfig{link: serverLink(), protocols: hashSHA256, trusted: trusted}, d.now, send, func(uint16, []byte) {}, func([]byte) {})
	return d
}

// hear hands over a control message.
func (d *desk) hear(k kind, attrs ...attribute) {
	d.t.Helper()
	if err := d.receive(d.now, packet{raw: message{kind: k, attrs: attrs}.encode(), control: true}); err != nil {
		d.t.Fatal(err)
	}
}

// wait lets time pass, second by second.
func (d *desk) wait(t time.Duration) error {
	for range int(t / time.Second) {
		d.now = d.now.Add(time.Second)
		if err := d.tick(d.now); err != nil {
			return err
		}
	}
	return nil
}

// last takes the message said last.
func (d *desk) last() (m message) {
	if n := len(d.said); n > 0 {
		m = d.said[n-1]
		d.said = d.said[:n-1]
	}
	return m
}

// connect makes a connected call without its login.
func (d *desk) connect() {
	d.hear(callConnectRequest, attribute{attrProtocol, []byte{0, protocolPPP}})
	d.state, d.deadline = StateConnected, time.Time{}
	d.link.lcp.deadline = time.Time{} // its requests are another test's
	d.said = nil
}

// A silent client is asked after 60 s, and dead after 120 s; any packet counts.
func TestEchoTimer(t *testing.T) {
	d := newDesk(t)
	d.connect()
	if err := d.wait(59 * time.Second); err != nil || len(d.said) != 0 {
		t.Fatalf("too early: %v, %v", d.said, err)
	}
	if err := d.wait(time.Second); err != nil || d.last().kind != echoRequest {
		t.Fatalf("not asked: %v", err)
	}
	if err := d.wait(59 * time.Second); err != nil || len(d.said) != 0 {
		t.Fatalf("%v, %v", d.said, err)
	}
	d.hear(echoResponse)
	if err := d.wait(60 * time.Second); err != nil || d.last().kind != echoRequest {
		t.Fatalf("not asked again: %v", err)
	}
	if err := d.wait(60 * time.Second); !errors.Is(err, errOver) || d.reason != reasonEcho || len(d.said) != 0 {
		t.Errorf("a dead client: %v, %q, said %v", err, d.reason, d.said)
	}
}

func TestSlowClientsAreAborted(t *testing.T) {
	for name, begin := range map[string]func(*desk){
		"without a request": func(*desk) {},
		"without a login":   func(d *desk) { d.hear(callConnectRequest, attribute{attrProtocol, []byte{0, protocolPPP}}) },
	} {
		d := newDesk(t)
		begin(d)
		d.link.lcp.deadline = time.Time{}
		if err := d.wait(60 * time.Second); err != nil || d.state != StateClosing {
			t.Fatalf("%s: %v in %s", name, err, d.state)
		}
		if _, st, _ := statusOf(d.last()); st != statusNegotiation {
			t.Errorf("%s: status %d", name, st)
		}
		if err := d.wait(abortTime); !errors.Is(err, errOver) || d.reason != reasonNegotiation {
			t.Errorf("%s: %v, %q", name, err, d.reason)
		}
	}
}

func TestUnacceptableRequests(t *testing.T) {
	for want, attrs := range map[status][]attribute{
		statusMissing:       nil,
		statusInvalidLength: {{attrProtocol, []byte{1}}},
		statusNotSupported:  {{attrProtocol, []byte{0, 2}}},
	} {
		d := newDesk(t)
		for range maxNaks - 1 {
			d.hear(callConnectRequest, attrs...)
			m := d.last()
			if attr, st, _ := statusOf(m); m.kind != callConnectNak || attr != attrProtocol || st != want {
				t.Errorf("%+v, want status %d", m, want)
			}
		}
		d.hear(callConnectRequest, attrs...)
		if m := d.last(); m.kind != callAbort || d.state != StateClosing {
			t.Errorf("the third one: %+v in %s", m, d.state)
		}
	}
}

func TestMessagesOutOfPlaceAbort(t *testing.T) {
	request := []attribute{{attrProtocol, []byte{0, protocolPPP}}}
	for name, hear := range map[string]func(*desk){
		"connected before the request": func(d *desk) { d.hear(callConnected, binding{protocol: hashSHA256}.encode()) },
		"a second request": func(d *desk) {
			d.hear(callConnectRequest, request...)
			d.hear(callConnectRequest, request...)
		},
		"connected before the login": func(d *desk) {
			d.hear(callConnectRequest, request...)
			d.hear(callConnected, binding{protocol: hashSHA256}.encode())
		},
		"echo before connected": func(d *desk) { d.hear(echoRequest) },
		"an unknown message":    func(d *desk) { d.hear(42) },
		"a cut message": func(d *desk) {
			if err := d.receive(d.now, packet{raw: []byte{version, flagC, 0, 8, 0, 1, 0, 1}, control: true}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		d := newDesk(t)
		hear(d)
		if m := d.last(); m.kind != callAbort || d.state != StateClosing || d.reason != reasonMessage {
			t.Errorf("%s: %+v in %s, %q", name, m, d.state, d.reason)
		}
	}
}

func TestGoodbyes(t *testing.T) {
	d := newDesk(t)
	d.connect()
	d.disconnect(d.now, reasonWeLeft)
	if m := d.last(); m.kind != callDisconnect {
		t.Errorf("%+v", m)
	}
	d.hear(callDisconnectAck)
	if err := d.wait(lastTime); !errors.Is(err, errOver) || d.reason != reasonWeLeft {
		t.Errorf("%v, %q", err, d.reason)
	}
	d = newDesk(t)
	d.connect()
	d.hear(callAbort, statusInfo(attrBinding, statusNotSupported))
	if m := d.last(); m.kind != callAbort {
		t.Errorf("%+v", m)
	}
	if err := d.wait(lastTime); !errors.Is(err, errOver) || d.reason != reasonPeerAbort {
		t.Errorf("%v, %q", err, d.reason)
	}
}
