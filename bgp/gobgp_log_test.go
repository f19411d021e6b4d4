package bgp

import (
	"errors"
	"net"
	"os"
	"testing"

	bgplog "github.com/osrg/gobgp/v3/pkg/log"
)

// A protection that fails after the start is told in the library's log only.
func TestLogBridgeFindsFatalFaults(t *testing.T) {
	tests := []struct {
		name string
		log  func(*logBridge)
		want error
	}{
		{"md5 on a listener", func(b *logBridge) {
			b.Warn("failed to set md5", bgplog.Fields{"Key": "192.0.2.1", "Err": errors.New("no")})
		}, ErrSocketOption},
		{"hop limit", func(b *logBridge) {
			b.Warn("cannot set TTL for peer", bgplog.Fields{"Key": "192.0.2.1", "Error": errors.New("no")})
		}, ErrSocketOption},
		{"option while dialling", func(b *logBridge) {
			b.Debug("failed to connect", bgplog.Fields{"Key": "192.0.2.1", "Error": &net.OpError{Op: "dial", Err: os.NewSyscallError("setsockopt", os.ErrPermission)}})
		}, ErrSocketOption},
		{"refused while dialling", func(b *logBridge) {
			b.Debug("failed to connect", bgplog.Fields{"Key": "192.0.2.1", "Error": &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", os.ErrDeadlineExceeded)}})
		}, nil},
		{"panic", func(b *logBridge) { b.Panic("code logic bug", nil) }, ErrLibrary},
		{"fatal", func(b *logBridge) { b.Fatal("no", nil); b.Fatal("again", nil) }, ErrLibrary},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			b := newLogBridge(Deps{}.logger())
			tc.log(b)
			select {
			case err := <-b.fatal:
				if tc.want == nil || !errors.Is(err, tc.want) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
			default:
				if tc.want != nil {
					t.Errorf("not seen, want %v", tc.want)
				}
			}
		})
	}
}
