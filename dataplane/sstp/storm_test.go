package sstp

import (
	"crypto"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
)

// slowKey signs only when the test lets it, and counts how many signatures are made
// at the same time.
type slowKey struct {
	crypto.Signer
	now, most atomic.Int64
	next      chan struct{}
}

func (k *slowKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	n := k.now.Add(1)
	defer k.now.Add(-1)
	for most := k.most.Load(); n > most && !k.most.CompareAndSwap(most, n); most = k.most.Load() {
	}
	<-k.next
	return k.Signer.Sign(rand, digest, opts)
}

// A storm of hellos computes on a few processors at a time: what else the process
// does never waits behind all of them.
func TestStormLeavesProcessors(t *testing.T) {
	const clients = 40
	f := newFarEnd(t, nil)
	d := oneTarget(t, f)
	key := &slowKey{Signer: d.Certificates[0].TLS.PrivateKey.(crypto.Signer), next: make(chan struct{})}
	d.Certificates[0].TLS.PrivateKey = key
	b := newBed(t, d, nil)
	done := make(chan error, clients)
	for range clients {
		go func() {
			c, err := b.dial(nil)
			if err == nil {
				c.Close()
			}
			done <- err
		}()
	}
	may := int64(max(runtime.GOMAXPROCS(0)-1, 1))
	for left := int64(clients); left > 0; left-- {
		b.until("as many compute as may", func() bool { return key.now.Load() >= min(may, left) })
		key.next <- struct{}{}
	}
	for range clients {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if most := key.most.Load(); most > may {
		t.Errorf("%d handshakes computed at the same time, want at most %d", most, may)
	}
}
