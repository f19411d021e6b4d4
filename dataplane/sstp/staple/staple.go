// Package staple keeps OCSP responses for the certificates that are shown to
// clients (RFC 6960; stapled by RFC 6066 8 and RFC 8446 4.4.2.1).
//
// Each certificate that names a responder has a goroutine that asks it early in
// the life of the answer it has, and again with growing pauses when it fails. A
// handshake takes what there is and never waits: no staple is no fault, an old
// one would be.
package staple

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	maxBody     = 64 << 10 // of a response, bytes; real ones have 0.5 to 4 KiB
	askTimeout  = 15 * time.Second
	firstPause  = 30 * time.Second // after a failure; doubles
	longestWait = 5 * time.Minute  // after failures: an outage's end is noticed soon
	// Without a next update an answer is asked for again this often (RFC 6960
	// 4.2.2.1: newer information is always available), and used this long.
	undatedRefresh = time.Hour
	undatedLife    = 12 * time.Hour
	skew           = 5 * time.Minute // that the responder's clock may be ahead
)

// Entry is one certificate with its staple. Safe for concurrent use.
type Entry struct {
	bare    *tls.Certificate
	stapled atomic.Pointer[stapled]
	stop    context.CancelFunc // nil: the certificate names no responder
	fault   atomic.Pointer[string]
	revoked atomic.Bool // by the last answer
}

type stapled struct {
	cert  *tls.Certificate
	until time.Time
}

// Certificate is what to show: with a staple while there is a valid one.
func (e *Entry) Certificate() *tls.Certificate {
	if s := e.stapled.Load(); s != nil && time.Now().Before(s.until) {
		return s.cert
	}
	return e.bare
}

// State says in a word how the staple is: none (no responder is named, or the chain
// lacks the issuer), valid, missing, or revoked (the last answer said so, whatever its
// age); and the last fault of a responder that is not answered since.
func (e *Entry) State() (word, fault string) {
	if f := e.fault.Load(); f != nil {
		fault = *f
	}
	switch s := e.stapled.Load(); {
	case e.revoked.Load():
		return "revoked", fault
	case s != nil && time.Now().Before(s.until):
		return "valid", fault
	case e.stop == nil:
		return "none", fault
	}
	return "missing", fault
}

// Keeper keeps the entries. Make it with New.
type Keeper struct {
	client *http.Client
	log    *slog.Logger
	count  func(result string)

	mu      sync.Mutex
	entries map[[32]byte]*Entry
	closed  bool
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	asking  sync.WaitGroup
}

// New makes a Keeper that asks through client; count is told each result: good,
// revoked, unknown, failed.
func New(client *http.Client, log *slog.Logger, count func(result string)) *Keeper {
	ctx, cancel := context.WithCancel(context.Background())
	return &Keeper{client: client, log: log, count: count, entries: map[[32]byte]*Entry{}, ctx: ctx, cancel: cancel}
}

// Set says which certificates there are; entries of those that stay, by the
// hash of their leaf, keep their staples unless the chain or key was replaced.
// The result is in the order of certs. Each needs its Leaf.
func (k *Keeper) Set(certs []*tls.Certificate) []*Entry {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := make(map[[32]byte]*Entry, len(certs))
	out := make([]*Entry, len(certs))
	for i, c := range certs {
		hash := sha256.Sum256(c.Leaf.Raw)
		e := next[hash]
		if e == nil {
			if e = k.entries[hash]; e == nil || e.bare != c {
				e = k.adopt(c, e)
			}
			next[hash] = e
		}
		out[i] = e
	}
	for hash, e := range k.entries {
		if next[hash] != e && e.stop != nil {
			e.stop()
		}
	}
	k.entries = next
	return out
}

// adopt makes the entry of c; a valid staple of its forerunner, which has the
// same leaf, goes over.
func (k *Keeper) adopt(c *tls.Certificate, old *Entry) *Entry {
	e := &Entry{bare: c}
	if old != nil {
		if s := old.stapled.Load(); s != nil {
			e.put(s.cert.OCSPStaple, s.until)
		}
		e.revoked.Store(old.revoked.Load())
	}
	issuer := issuerOf(c)
	if len(c.Leaf.OCSPServer) == 0 || issuer == nil || k.closed {
		return e
	}
	ctx, stop := context.WithCancel(k.ctx)
	e.stop = stop
	k.asking.Go(func() { k.keep(ctx, e, issuer) })
	return e
}

// issuerOf needs the issuer in the chain: its name and key are asked about.
func issuerOf(c *tls.Certificate) *x509.Certificate {
	if len(c.Certificate) < 2 {
		return nil
	}
	issuer, err := x509.ParseCertificate(c.Certificate[1])
	if err != nil || c.Leaf.CheckSignatureFrom(issuer) != nil {
		return nil
	}
	return issuer
}

func (e *Entry) put(staple []byte, until time.Time) {
	with := *e.bare
	with.OCSPStaple = staple
	e.stapled.Store(&stapled{cert: &with, until: until})
}

// keep asks for as long as the entry is there.
func (k *Keeper) keep(ctx context.Context, e *Entry, issuer *x509.Certificate) {
	pause := firstPause
	wait := rand.N(time.Second) // many nodes start at once
	if s := e.stapled.Load(); s != nil && time.Until(s.until) > undatedRefresh {
		wait = rand.N(undatedRefresh)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		refresh, err := k.renew(ctx, e, issuer)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			pause = firstPause
			if e.fault.Swap(nil) != nil {
				k.log.Info("ocsp staple is there again", "subject", e.bare.Leaf.Subject.CommonName)
			}
			timer.Reset(refresh)
			continue
		}
		k.fail(e, err)
		timer.Reset(pause + rand.N(pause/4))
		pause = min(2*pause, longestWait)
	}
}

func (k *Keeper) fail(e *Entry, err error) {
	text := err.Error()
	if was := e.fault.Swap(&text); was == nil {
		k.log.Warn("no ocsp staple", "subject", e.bare.Leaf.Subject.CommonName, "err", err)
	}
}

// renew asks once; it tells when to ask again.
func (k *Keeper) renew(ctx context.Context, e *Entry, issuer *x509.Certificate) (time.Duration, error) {
	leaf := e.bare.Leaf
	body, answer, err := k.ask(ctx, leaf, issuer)
	if err != nil {
		k.count("failed")
		return 0, err
	}
	now := time.Now()
	switch answer.Status {
	case ocsp.Good:
		k.count("good")
	case ocsp.Revoked: // clients should know
		k.count("revoked")
		if !e.revoked.Load() {
			k.log.Error("certificate is revoked", "subject", leaf.Subject.CommonName, "at", answer.RevokedAt)
		}
	default:
		k.count("unknown")
		return 0, errors.New("the responder does not know the certificate")
	}
	e.revoked.Store(answer.Status == ocsp.Revoked)
	if answer.NextUpdate.IsZero() {
		e.put(body, now.Add(undatedLife))
		return undatedRefresh, nil
	}
	e.put(body, answer.NextUpdate)
	half := max(answer.NextUpdate.Sub(answer.ThisUpdate)/2, 0)
	return max(time.Until(answer.ThisUpdate.Add(half))+rand.N(half/8+1), time.Minute), nil
}

// ask posts one request to the first responder that the leaf names (RFC 6960
// appendix A.1), and checks signature and dates of the answer.
func (k *Keeper) ask(ctx context.Context, leaf, issuer *x509.Certificate) ([]byte, *ocsp.Response, error) {
	question, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("make an ocsp request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, leaf.OCSPServer[0], bytes.NewReader(question))
	if err != nil {
		return nil, nil, fmt.Errorf("ask the ocsp responder: %w", err)
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("ask the ocsp responder: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("read from the ocsp responder: %w", err)
	case resp.StatusCode != http.StatusOK:
		return nil, nil, fmt.Errorf("ask the ocsp responder: status %d", resp.StatusCode)
	case len(body) > maxBody:
		return nil, nil, fmt.Errorf("answer of the ocsp responder has more than %d bytes", maxBody)
	}
	answer, err := parse(body, leaf, issuer)
	if err != nil {
		return nil, nil, fmt.Errorf("check the ocsp answer: %w", err)
	}
	now := time.Now()
	if answer.ThisUpdate.After(now.Add(skew)) || !answer.NextUpdate.IsZero() && !answer.NextUpdate.After(now) {
		return nil, nil, fmt.Errorf("ocsp answer is valid from %v to %v only", answer.ThisUpdate, answer.NextUpdate)
	}
	return body, answer, nil
}

// parse checks the signature of an answer: by the issuer, or by a responder's
// certificate in it that the issuer signed (RFC 6960 4.2.2.2). An answer may hold the
// issuer's own certificate, too, which the issuer did not sign unless it is a root.
func parse(body []byte, leaf, issuer *x509.Certificate) (*ocsp.Response, error) {
	answer, err := ocsp.ParseResponseForCert(body, leaf, issuer)
	if err == nil {
		return answer, nil
	}
	// Without an issuer the answer's signature is checked by the embedded certificate.
	own, again := ocsp.ParseResponseForCert(body, leaf, nil)
	if again != nil || own.Certificate == nil || !bytes.Equal(own.Certificate.RawSubjectPublicKeyInfo, issuer.RawSubjectPublicKeyInfo) {
		return nil, err
	}
	return own, nil
}

// Close stops asking and waits for what is under way.
func (k *Keeper) Close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.asking.Wait()
}
