package lab

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"
)

// TestLabSSTP lets sstpc call through the cluster, in every mode. It is one
// laboratory whose mode changes, as a site goes from one to the other.
func TestLabSSTP(t *testing.T) {
	needSSTPC(t)
	l := up(t, Options{Name: "tsstp", Clients: 30, SSTP: SSTPPassthrough})
	t.Cleanup(func() { l.showSSTP(t) })
	for _, c := range []struct {
		mode   SSTPMode
		drills []string
	}{
		{SSTPPassthrough, []string{"sstp-call", "sstp-node-stop"}},
		{SSTPReencrypt, []string{"sstp-call", "sstp-rotate"}},
		{SSTPOffload, []string{"sstp-call", "sstp-storm", "sstp-rotate", "sstp-storm", "sstp-node-stop", "sstp-server-kill", "sstp-wrong-hash"}},
	} {
		if err := l.changeSSTP(t.Context(), c.mode); err != nil {
			t.Fatal(err)
		}
		for _, d := range c.drills {
			t.Run(string(c.mode)+"/"+d, func(t *testing.T) { run(t, l, d) })
		}
	}
}

const modeBound = 30 * time.Second // until all verdicts are up in another mode

// changeSSTP starts the SSTP services anew and changes the VIPs.
func (l *Lab) changeSSTP(ctx context.Context, mode SSTPMode) error {
	if l.st.Options.SSTP == mode {
		return nil
	}
	l.st.Options.SSTP = mode
	for i := range l.st.Options.Servers {
		if err := l.stop(ctx, sstpName(i+1)); err != nil {
			return err
		}
		if err := (&embeddedPeers{l: l}).startSSTP(ctx, i+1); err != nil {
			return err
		}
	}
	for _, f := range l.st.Options.families() {
		if err := l.cli(ctx, cliBound, l.members()[0], nil, l.st.Options.vipCommand(f, l.currentCert())...); err != nil {
			return err
		}
	}
	return l.backendsUp(ctx, modeBound)
}

// showSSTP tells after a failure what servers and clients say of their calls.
func (l *Lab) showSSTP(t *testing.T) {
	if !t.Failed() {
		return
	}
	for i := range l.st.Options.Servers {
		if st, err := l.sstpServer(context.Background(), i+1); err == nil {
			t.Logf("--- server %d: %+v", i+1, st)
		}
	}
	for i := range sstpClients {
		if b, err := os.ReadFile(l.path(sstpClientName(i+1), "sstpc.log")); err == nil {
			t.Logf("--- end of sstpc of client %d\n%s", i+1, bytes.ReplaceAll(b[max(0, len(b)-logTailBytes):], []byte{0}, nil))
		}
	}
}
