package transport

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// The other end takes a request on a kept connection and dies before it answers.
func TestCallOnceIsDeliveredOnce(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		idb := w.admit(state.RoleNode)
		a, b := w.start(ctx, addrA, w.admit(state.RoleNode)), w.start(ctx, addrB, idb)
		var delivered atomic.Int32
		b.HandleRPC("/count", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			delivered.Add(1)
			panic(http.ErrAbortHandler)
		}))
		to := Target{Addr: addrB, Node: idb.Node}
		for name, c := range map[string]struct {
			call func(context.Context, Target, string, any, any) error
			want int32
		}{"Call": {a.Call, 2}, "CallOnce": {a.CallOnce, 1}} {
			delivered.Store(0)
			if _, err := a.Ping(ctx, to); err != nil { // there is a kept connection
				t.Fatal(err)
			}
			if err := c.call(ctx, to, "/count", nil, nil); err == nil {
				t.Errorf("%s: no error", name)
			}
			if n := delivered.Load(); n != c.want {
				t.Errorf("%s: delivered %d times, want %d", name, n, c.want)
			}
		}
	})
}
