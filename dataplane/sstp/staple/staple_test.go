package staple

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ocsp"
)

// world is an authority with a responder, reached by a fake round trip: a
// bubble has no network.
type world struct {
	t      *testing.T
	ca     *x509.Certificate
	key    crypto.Signer
	mu     sync.Mutex
	asked  int
	counts map[string]int
	answer func(*ocsp.Request) ([]byte, error) // nil: good for a day
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, key: newKey(t), counts: map[string]int{}}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	w.ca = w.sign(template, template, w.key)
	return w
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (w *world) sign(template, parent *x509.Certificate, key crypto.Signer) *x509.Certificate {
	w.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

func (w *world) leaf(serial int64, responders ...string) *tls.Certificate {
	w.t.Helper()
	key := newKey(w.t)
	leaf := w.sign(&x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		OCSPServer: responders}, w.ca, key)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, w.ca.Raw}, PrivateKey: key, Leaf: leaf}
}

func (w *world) keeper() *Keeper {
	k := New(&http.Client{Transport: w}, slog.New(slog.DiscardHandler), func(result string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.counts[result]++
	})
	w.t.Cleanup(k.Close)
	return k
}

func (w *world) response(r *ocsp.Request, status int, next time.Duration) ([]byte, error) {
	template := ocsp.Response{Status: status, SerialNumber: r.SerialNumber, ThisUpdate: time.Now().Add(-time.Minute), RevokedAt: time.Now()}
	if next != 0 {
		template.NextUpdate = time.Now().Add(next)
	}
	return ocsp.CreateResponse(w.ca, w.ca, template, w.key)
}

// RoundTrip is the responder.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	question, err := ocsp.ParseRequest(body)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.asked++
	answer := w.answer
	w.mu.Unlock()
	if answer == nil {
		answer = func(r *ocsp.Request) ([]byte, error) { return w.response(r, ocsp.Good, 24*time.Hour) }
	}
	out, err := answer(question)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(out)), Request: r}, nil
}

func (w *world) set(answer func(*ocsp.Request) ([]byte, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer, w.asked = answer, 0
}

func (w *world) times() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

const responder = "http://ocsp.example.test/"

func TestStapleComesAndIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		k := w.keeper()
		defer k.Close()
		cert := w.leaf(7, responder)
		e := k.Set([]*tls.Certificate{cert})[0]
		if e.Certificate() != cert { // a handshake never waits
			t.Error("a staple from nowhere")
		}
		time.Sleep(2 * time.Second)
		first := e.Certificate().OCSPStaple
		answer, err := ocsp.ParseResponseForCert(first, cert.Leaf, w.ca)
		if err != nil || answer.Status != ocsp.Good {
			t.Fatalf("staple %v, %v", answer, err)
		}
		if word, fault := e.State(); word != "valid" || fault != "" {
			t.Errorf("state %s, %s", word, fault)
		}
		time.Sleep(15 * time.Hour) // half of its life and some
		if n := w.times(); n != 2 {
			t.Errorf("asked %d times", n)
		}
		if bytes.Equal(e.Certificate().OCSPStaple, first) {
			t.Error("not renewed")
		}
		// The same certificate set again keeps its staple and its rhythm.
		if again := k.Set([]*tls.Certificate{cert, w.leaf(8)}); again[0] != e {
			t.Error("another entry")
		} else if word, _ := again[1].State(); word != "none" {
			t.Errorf("without responder: %s", word)
		}
		k.Set(nil)
		before := w.times()
		time.Sleep(48 * time.Hour)
		if w.times() != before {
			t.Error("asked for a certificate that is gone")
		}
	})
}

// While the responder fails the staple stays as long as it is valid, and no
// longer; questions become rare.
func TestResponderFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		k := w.keeper()
		defer k.Close()
		cert := w.leaf(7, responder)
		e := k.Set([]*tls.Certificate{cert})[0]
		time.Sleep(2 * time.Second)
		w.set(func(*ocsp.Request) ([]byte, error) { return nil, errors.New("no route") })
		time.Sleep(23 * time.Hour)
		if word, fault := e.State(); word != "valid" || !strings.Contains(fault, "no route") {
			t.Errorf("state %s, %s", word, fault)
		}
		if n := w.times(); n < 5 || n > 150 {
			t.Errorf("asked %d times in half a day", n)
		}
		time.Sleep(time.Hour)
		if e.Certificate() != cert {
			t.Error("an old staple is shown")
		}
		w.set(nil)
		time.Sleep(2 * time.Hour)
		if word, fault := e.State(); word != "valid" || fault != "" {
			t.Errorf("state %s, %s", word, fault)
		}
	})
}

func TestAnswersRefused(t *testing.T) {
	w := newWorld(t)
	stranger := newWorld(t)
	for name, answer := range map[string]func(*ocsp.Request) ([]byte, error){
		"unknown":  func(r *ocsp.Request) ([]byte, error) { return w.response(r, ocsp.Unknown, time.Hour) },
		"old":      func(r *ocsp.Request) ([]byte, error) { return w.response(r, ocsp.Good, -time.Second) },
		"stranger": func(r *ocsp.Request) ([]byte, error) { return stranger.response(r, ocsp.Good, time.Hour) },
		"other": func(r *ocsp.Request) ([]byte, error) {
			other := *r
			other.SerialNumber = big.NewInt(99)
			return w.response(&other, ocsp.Good, time.Hour)
		},
		"garbage": func(*ocsp.Request) ([]byte, error) { return []byte("<html>"), nil },
		"huge":    func(*ocsp.Request) ([]byte, error) { return make([]byte, maxBody+1), nil },
	} {
		w.set(answer)
		k := w.keeper()
		cert := w.leaf(7, responder)
		e := &Entry{bare: cert}
		if _, err := k.renew(t.Context(), e, w.ca); err == nil {
			t.Errorf("%s: taken", name)
		}
		if e.Certificate() != cert {
			t.Errorf("%s: stapled", name)
		}
	}
}

// A revocation is for clients to see.
func TestRevoked(t *testing.T) {
	w := newWorld(t)
	w.set(func(r *ocsp.Request) ([]byte, error) { return w.response(r, ocsp.Revoked, time.Hour) })
	k := w.keeper()
	e := &Entry{bare: w.leaf(7, responder)}
	if _, err := k.renew(t.Context(), e, w.ca); err != nil || len(e.Certificate().OCSPStaple) == 0 {
		t.Errorf("%v, staple %x", err, e.Certificate().OCSPStaple)
	}
	if w.counts["revoked"] != 1 {
		t.Errorf("counts %v", w.counts)
	}
	if word, _ := e.State(); word != "revoked" {
		t.Errorf("state %s", word)
	}
	w.set(nil) // a certificate on hold comes back
	if _, err := k.renew(t.Context(), e, w.ca); err != nil {
		t.Error(err)
	}
	if word, _ := e.State(); word != "valid" {
		t.Errorf("state %s", word)
	}
}

// Some responders of an intermediate CA put that CA's certificate into the answer.
func TestEmbeddedIssuer(t *testing.T) {
	root, w, stranger := newWorld(t), newWorld(t), newWorld(t)
	intermediate := func(of *world) *x509.Certificate {
		return root.sign(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Intermediate CA"}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, root.ca, of.key)
	}
	w.ca, stranger.ca = intermediate(w), intermediate(stranger)
	for _, from := range []*world{w, stranger} {
		w.set(func(r *ocsp.Request) ([]byte, error) {
			template := ocsp.Response{Status: ocsp.Good, SerialNumber: r.SerialNumber, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour), Certificate: from.ca}
			return ocsp.CreateResponse(w.ca, from.ca, template, from.key)
		})
		e := &Entry{bare: w.leaf(7, responder)}
		_, err := w.keeper().renew(t.Context(), e, w.ca)
		if taken := err == nil && len(e.Certificate().OCSPStaple) > 0; taken != (from == w) {
			t.Errorf("taken %t, own issuer %t: %v", taken, from == w, err)
		}
	}
}

// An outage of a day is over soon after the responder answers.
func TestOutageEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.set(func(*ocsp.Request) ([]byte, error) { return nil, errors.New("no route") })
		k := w.keeper()
		defer k.Close()
		e := k.Set([]*tls.Certificate{w.leaf(7, responder)})[0]
		time.Sleep(24 * time.Hour)
		if n := w.times(); n > 300 {
			t.Errorf("asked %d times in a day", n)
		}
		w.set(nil)
		time.Sleep(7 * time.Minute)
		if word, fault := e.State(); word != "valid" || fault != "" {
			t.Errorf("state %s, %s", word, fault)
		}
	})
}

// An answer without a next update is used for a while, and asked for anew.
func TestUndated(t *testing.T) {
	w := newWorld(t)
	w.set(func(r *ocsp.Request) ([]byte, error) { return w.response(r, ocsp.Good, 0) })
	k := w.keeper()
	e := &Entry{bare: w.leaf(7, responder)}
	again, err := k.renew(t.Context(), e, w.ca)
	if err != nil || again != undatedRefresh || len(e.Certificate().OCSPStaple) == 0 {
		t.Errorf("again in %v, %v", again, err)
	}
}

// Without the issuer nothing can be asked.
func TestNoIssuer(t *testing.T) {
	w := newWorld(t)
	bare, foreign := w.leaf(7, responder), w.leaf(8, responder)
	bare.Certificate = bare.Certificate[:1]
	foreign.Certificate[1] = foreign.Certificate[0]
	for _, e := range w.keeper().Set([]*tls.Certificate{bare, foreign}) {
		if word, _ := e.State(); word != "none" {
			t.Errorf("state %s", word)
		}
	}
}

// Close ends what is under way.
func TestClose(t *testing.T) {
	w := newWorld(t)
	asked := make(chan struct{})
	w.set(func(*ocsp.Request) ([]byte, error) { close(asked); return nil, context.Canceled })
	k := w.keeper()
	k.Set([]*tls.Certificate{w.leaf(7, responder)})
	<-asked
	k.Close()
	k.Set([]*tls.Certificate{w.leaf(8, responder)}) // after the end: no goroutine
}
