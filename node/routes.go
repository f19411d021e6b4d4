package node

import (
	"context"
	"fmt"
	"net/http"

	"github.com/vpnlb/vpnlb/node/admin"
)

// routes registers the admin API.
func (n *Node) routes() {
	n.admin.Get(admin.PathStatus, n.status)
	n.admin.Handle(admin.PathMetrics, http.HandlerFunc(n.serveMetrics))
	n.get(admin.PathMembers, (*member).members)
	n.get(admin.PathSpec, (*member).specAnswer)
	n.get(admin.PathAffinityList, (*member).affinityList)
	n.get(admin.PathAffinityGet, (*member).affinityGet)
	n.get(admin.PathExplain, (*member).explain)
	n.get(admin.PathCertList, (*member).certificates)
	n.get(admin.PathSSTPSessions, (*member).sstpSessions)
	n.get(admin.PathSSTPStatus, (*member).sstpStatus)
	n.get(admin.PathSSTPRRAS, (*member).rrasAnswer)
	n.admin.Handle(admin.PathTrace, http.HandlerFunc(n.serveTrace))

	admin.Post(n.admin, admin.PathInit, n.initCluster)
	admin.Stream(n.admin, admin.PathJoin, n.joinCluster)
	admin.Stream(n.admin, admin.PathLeave, n.leaveCluster)
	post(n, admin.PathToken, (*member).makeToken)
	post(n, admin.PathRemove, (*member).removeMember)
	post(n, admin.PathSet, (*member).set)
	post(n, admin.PathVIPAdd, (*member).addVIP)
	post(n, admin.PathVIPRemove, (*member).removeVIP)
	post(n, admin.PathBackendAdd, (*member).addBackend)
	post(n, admin.PathBackendAdmin, (*member).setBackendAdmin)
	post(n, admin.PathBackendRemove, (*member).removeBackend)
	post(n, admin.PathGatewayAdd, (*member).addGateway)
	post(n, admin.PathGatewayRemove, (*member).removeGateway)
	post(n, admin.PathAffinityForget, (*member).forgetAffinity)
	post(n, admin.PathCertAdd, (*member).addCertificate)
	post(n, admin.PathCertUse, (*member).useCertificate)
	post(n, admin.PathCertRemove, (*member).removeCertificate)
	post(n, admin.PathCertRotate, (*member).rotateCertificate)
}

// current is the membership, or the sentence that there is none.
func (n *Node) current() (*member, error) {
	if m := n.member.Load(); m != nil {
		return m, nil
	}
	if _, err := n.identity(); err != nil {
		return nil, err
	}
	return nil, &admin.Error{Status: http.StatusServiceUnavailable, Message: "this node belongs to no cluster yet: run 'vpnlb cluster init' here, or 'vpnlb cluster join'"}
}

func (n *Node) get(path string, fn func(*member, *http.Request) (any, error)) {
	n.admin.Get(path, func(r *http.Request) (any, error) {
		m, err := n.current()
		if err != nil {
			return nil, err
		}
		return fn(m, r)
	})
}

func post[In any](n *Node, path string, fn func(*member, context.Context, In) (any, error)) {
	admin.Post(n.admin, path, func(ctx context.Context, in In) (any, error) {
		m, err := n.current()
		if err != nil {
			return nil, err
		}
		return fn(m, ctx, in)
	})
}

// leaveCluster: leaving what one does not belong to is done already.
func (n *Node) leaveCluster(in admin.LeaveRequest, step func(string)) error {
	m := n.member.Load()
	if m == nil && n.ids.Load() == nil {
		return n.abandon(in.Force, step)
	}
	if m == nil {
		step("this node belongs to no cluster: nothing to do")
		return nil
	}
	if err := m.leave(in, step); err != nil {
		return err
	}
	// The answer waits until everything is down: whoever runs join next finds
	// a node that is ready for it.
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := n.waitStage(ctx, StageWaiting); err != nil {
		return fmt.Errorf("%w; run the command again to go on waiting", err)
	}
	return nil
}
