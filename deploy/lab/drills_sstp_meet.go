package lab

import (
	"context"
	"net/netip"
	"slices"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
	"github.com/vpnlb/vpnlb/node/admin"
)

const ikeName = "ikeclient"

// meet lets a client with a call log in by IKE: it must meet its call.
func (d *drill) meet(ctx context.Context, i, server int) error {
	e := &embeddedPeers{l: d.l}
	got, err := e.ikeOf(ctx, i)
	if err != nil {
		return err
	}
	d.notef("%s: call on %s, IKE on %s", sstpRole(i), serverName(server), serverName(got))
	if got != server {
		d.failf("IKE of %s is on %s, its call on %s", sstpRole(i), serverName(got), serverName(server))
	}
	return d.l.stop(ctx, ikeName)
}

// meetAgain is the other way round: a client known by IKE alone calls. It is one
// that would go elsewhere as an unknown client, if there is one.
func (d *drill) meetAgain(ctx context.Context, clients ...int) error {
	i, alone, err := d.stranger(ctx, clients)
	if err != nil {
		return err
	}
	server := sstpPlan[i]
	if err := d.only(ctx, server); err != nil {
		return err
	}
	got, err := (&embeddedPeers{l: d.l}).ikeOf(ctx, i)
	if err != nil {
		return err
	}
	if got != server {
		d.failf("IKE of %s is on %s while only %s takes new clients", sstpRole(i), serverName(got), serverName(server))
	}
	if err := d.only(ctx, 0); err != nil {
		return err
	}
	if err := d.l.dialSSTP(ctx, i); err != nil {
		return err
	}
	c, err := d.l.waitCall(ctx, sstpBound, i, "beside its IKE", anyCall)
	if err != nil {
		return err
	}
	d.notef("%s: IKE on %s, then the call on %s; without IKE it would have been on %s", sstpRole(i), serverName(got), serverName(c.server), alone)
	if c.server != got {
		d.failf("the call of %s is on %s, its IKE on %s", sstpRole(i), serverName(c.server), serverName(got))
	}
	return d.l.stop(ctx, ikeName)
}

// stranger makes clients unknown and picks one that would go to another server
// than the planned one, and says where; there may be none.
func (d *drill) stranger(ctx context.Context, clients []int) (i int, alone string, err error) {
	m, err := d.l.anyMember()
	if err != nil {
		return 0, "", err
	}
	for _, i = range clients {
		if err := d.l.hangUpSSTP(ctx, i); err != nil {
			return 0, "", err
		}
	}
	if err := d.forget(ctx, clients...); err != nil {
		return 0, "", err
	}
	for _, i = range clients {
		var e admin.Explanation
		if err := d.l.cli(ctx, cliBound, m, &e, "explain", sstpLink(i).Addr().String(), "--class", "tcp"); err != nil {
			return 0, "", err
		}
		if len(e.Cases) > 0 {
			alone = e.Cases[0].Backend
		}
		if alone != serverName(sstpPlan[i]) {
			break
		}
	}
	return i, alone, nil
}

// ikeOf logs in from client i's address, waits until the agreement knows it, and
// says where it is; the client goes on until it is stopped.
func (e *embeddedPeers) ikeOf(ctx context.Context, i int) (server int, err error) {
	err = e.startPeer(ikeName, clientsName, sstpRole(i), peer.ClientsConfig{
		VIP: vipAddr, Addrs: []netip.Addr{sstpLink(i).Addr()}, Rate: 10, LossAfter: e.l.st.Options.LossAfter, Control: e.socket(ikeName),
	})
	if err != nil {
		return 0, err
	}
	if err := e.answers(ctx, ikeName); err != nil {
		return 0, err
	}
	err = until(ctx, loginBound, "IKE of "+sstpRole(i), func() (bool, error) {
		var st peer.ClientsStats
		if err := peer.Ask(ctx, e.socket(ikeName), "/stats", nil, &st); err != nil {
			return false, err
		}
		if len(st.Clients) != 1 || !st.Clients[0].Up || len(st.Clients[0].Sessions) == 0 {
			return false, nil
		}
		server = int(st.Clients[0].Sessions[len(st.Clients[0].Sessions)-1].Server)
		return e.l.knownByIKE(ctx, sstpLink(i).Addr())
	})
	return server, err
}

// knownByIKE reports whether every member's agreement has a record.
func (l *Lab) knownByIKE(ctx context.Context, a netip.Addr) (bool, error) {
	for _, n := range l.members() {
		var list []admin.Affinity
		err := l.cli(ctx, cliBound, n, &list, "affinity", "get", a.String())
		if err != nil && ctx.Err() != nil {
			return false, err
		}
		if !slices.ContainsFunc(list, func(x admin.Affinity) bool { return x.Class == "ike" }) {
			return false, nil // or there is no record at all yet, which is an error of the command
		}
	}
	return true, nil
}
