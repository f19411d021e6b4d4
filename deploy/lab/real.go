package lab

import (
	"context"
	"errors"
	"net/netip"
)

type realPeers struct{ l *Lab }

var errReal = errors.New("real peers not built yet")

func (r *realPeers) startRouter(context.Context) error              { return errReal }
func (r *realPeers) startServer(context.Context, int) error         { return errReal }
func (r *realPeers) killServer(context.Context, int) error          { return errReal }
func (r *realPeers) startClients(context.Context) error             { return errReal }
func (r *realPeers) addClients(context.Context, []netip.Addr) error { return errReal }
func (r *realPeers) relogin(context.Context, []netip.Addr) error    { return errReal }
func (r *realPeers) snapshot(context.Context) (snapshot, error)     { return snapshot{}, errReal }
func removeFRR(string) error                                        { return nil }
