package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane/maglev"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/raft"
)

// firstMember is what init bootstraps with.
type firstMember struct{ init state.Init }

// joinRequest is what a joining node sends, and what a member forwards to the
// leader.
type joinRequest struct {
	Token   string       `json:"token,omitempty"`
	CSR     []byte       `json:"csr"` // proves the key and names the node ID
	Name    string       `json:"name"`
	Cluster string       `json:"cluster"`
	Gossip  string       `json:"gossip"`
	Addrs   []netip.Addr `json:"addrs"`
	Format  uint16       `json:"format"`
}

// joinAnswer makes the node a member. It travels over TLS whose server proved
// to hold a certificate of the pinned CA.
type joinAnswer struct {
	Certificate []byte          `json:"certificate"`
	Roots       [][]byte        `json:"roots"`
	Secret      []byte          `json:"secret"`
	ClusterID   state.ClusterID `json:"cluster_id"`

	// The member list, and the index it is of: whom the new member may believe
	// before its own log says so. Older versions hand none over.
	Members []knownPeer `json:"members,omitempty"`
	Index   uint64      `json:"index,omitempty"`
}

// describe is what this node says of itself when it becomes a member.
func (n *Node) describe(id transport.Identity) (joinRequest, error) {
	csr, err := id.CSR()
	if err != nil {
		return joinRequest{}, err
	}
	addrs, err := ownAddresses(func(netip.Addr) bool { return false })
	return joinRequest{
		CSR: csr, Name: n.cfg.Name, Cluster: n.cfg.Cluster.Address.String(), Gossip: n.cfg.Cluster.Gossip.String(),
		Addrs: addrs, Format: state.Format,
	}, err
}

func (r *joinRequest) member(csr transport.CSR) state.Member {
	return state.Member{
		ID: csr.Node, Name: r.Name, Role: state.RoleNode, Cluster: r.Cluster, Gossip: r.Gossip,
		Addrs: r.Addrs, PublicKey: csr.PublicKey, Format: r.Format,
	}
}

// ownAddresses lists every unicast address of this host's interfaces: replies
// to these are for the node itself. Those of the cluster (VIPs, gateways) are
// left out: they are everybody's, or move.
func ownAddresses(shared func(netip.Addr) bool) ([]netip.Addr, error) {
	nets, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range nets {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || shared(p.Addr().Unmap()) {
			continue
		}
		out = append(out, p.Addr().Unmap())
	}
	return out, nil
}

// initCluster makes a cluster of this one node.
func (n *Node) initCluster(ctx context.Context, in admin.InitRequest) (any, error) {
	n.change.Lock()
	defer n.change.Unlock()
	ids, err := n.identity()
	if err != nil {
		return nil, err
	}
	id := ids.Identity()
	if id.Member() {
		return nil, &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("this node belongs to cluster %s already: 'vpnlb cluster leave' first", id.Cluster())}
	}
	if !in.Force {
		if err := n.checkSegment(ctx); err != nil {
			return nil, err
		}
	}
	init, adm, ca, err := n.newCluster(id)
	if err != nil {
		return nil, err
	}
	if err := n.mayBecomeMember(init.ClusterID); err != nil {
		return nil, err
	}
	if err := n.keepFirst(init); err != nil {
		return nil, err
	}
	if err := ids.Adopt(adm); err != nil {
		return nil, err
	}
	n.admitted <- admission{first: &firstMember{init: init}}
	if err := n.waitStage(ctx, StageRunning); err != nil {
		return nil, fmt.Errorf("cluster %s is made, with this node in it, and the node goes on by itself; but %w", init.ClusterID, err)
	}
	return admin.InitAnswer{Cluster: init.ClusterID.String(), Node: id.Node.String(), CAHash: ca.Hash().String(),
		Warnings: []string{"this node alone holds the cluster's keys until a second one has joined"}}, nil
}

func (n *Node) newCluster(id transport.Identity) (state.Init, transport.Admission, *transport.CA, error) {
	clusterID := state.NewClusterID()
	fail := func(err error) (state.Init, transport.Admission, *transport.CA, error) {
		return state.Init{}, transport.Admission{}, nil, fmt.Errorf("make a cluster: %w", err)
	}
	ca, err := transport.NewCA(clusterID)
	if err != nil {
		return fail(err)
	}
	self, err := n.describe(id)
	if err != nil {
		return fail(err)
	}
	csr, err := transport.ParseCSR(self.CSR)
	if err != nil {
		return fail(err)
	}
	cert, err := ca.Issue(self.CSR, transport.Name{Cluster: clusterID, Node: id.Node, Role: state.RoleNode})
	if err != nil {
		return fail(err)
	}
	secret := transport.NewSecret()
	caBytes, err := ca.Bytes()
	if err != nil {
		return fail(err)
	}
	sealedCA, err := transport.Seal(secret, secretCA, caBytes)
	if err != nil {
		return fail(err)
	}
	sealedGossip, err := transport.Seal(secret, secretGossip, cluster.NewKey())
	if err != nil {
		return fail(err)
	}
	init := state.Init{
		ClusterID: clusterID, TableSize: maglev.DefaultSize, Settings: state.DefaultSettings(), First: self.member(csr),
		Secrets: []state.Secret{{Name: secretCA, Sealed: sealedCA}, {Name: secretGossip, Sealed: sealedGossip}},
	}
	rand.Read(init.HashKey[:])
	return init, transport.Admission{Certificate: cert, Roots: [][]byte{ca.Certificate()}, Secret: secret}, ca, nil
}

// stageTimeout bounds how long init and join wait for the node to come up.
const stageTimeout = 60 * time.Second

func (n *Node) waitStage(ctx context.Context, want Stage) error {
	ctx, cancel := context.WithTimeout(ctx, stageTimeout)
	defer cancel()
	for {
		if s, _ := n.stageNow(); s == want {
			return nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			s, why := n.stageNow()
			return fmt.Errorf("the node is still %s (%s): 'vpnlb status' tells more", s, why)
		}
	}
}

// joinCluster joins this node to a cluster; running it again resumes.
func (n *Node) joinCluster(in admin.JoinRequest, step func(string)) error {
	n.change.Lock()
	defer n.change.Unlock()
	hash, err := transport.ParseCAHash(in.CAHash)
	if err != nil {
		return refuse("--ca-hash: %v", err)
	}
	if _, err := transport.ParseToken(in.Token); err != nil {
		return refuse("--token: %v", err)
	}
	if _, err := netip.ParseAddrPort(in.Addr); err != nil {
		return refuse("ADDR is the address and port of a member, such as 198.51.100.1:7950, not %q", in.Addr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stageTimeout)
	defer cancel()
	ids, err := n.identity()
	if err != nil {
		return err
	}
	if id := ids.Identity(); id.Member() {
		if !slices.ContainsFunc(id.Roots(), func(der []byte) bool { return transport.HashCA(der) == hash }) {
			return &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("this node belongs to cluster %s, and --ca-hash is that of another: 'vpnlb cluster leave' first", id.Cluster())}
		}
		step("this node was admitted already: resuming")
	} else {
		if err := n.askAdmission(ctx, in, hash, step); err != nil {
			return err
		}
		n.admitted <- admission{}
	}
	step("waiting for the cluster's log")
	if err := n.waitStage(ctx, StageRunning); err != nil {
		return fmt.Errorf("%w; run the command again to go on waiting", err)
	}
	step("caught up with the leader; the data plane holds what the cluster agreed")
	return n.waitVoter(ctx, step)
}

func (n *Node) askAdmission(ctx context.Context, in admin.JoinRequest, hash transport.CAHash, step func(string)) error {
	if err := n.mayBecomeMember(state.ClusterID{}); err != nil {
		return err
	}
	ids := n.ids.Load()
	n.forgetFirst() // of an init that was cut short
	if err := n.askAs(in.Token); err != nil {
		return err
	}
	req, err := n.describe(ids.Identity())
	if err != nil {
		return err
	}
	req.Token = in.Token
	step("asking " + in.Addr + " for admission")
	var out joinAnswer
	server, ca, err := transport.Joiner{Addr: in.Addr, CAHash: hash, Dial: n.dial, Vet: n.vetCluster}.Join(ctx, req, &out)
	if err != nil {
		return fmt.Errorf("join at %s: %w", in.Addr, err)
	}
	if out.ClusterID != server.Cluster || len(out.Secret) != 32 {
		return fmt.Errorf("join at %s: the answer is not of cluster %s", in.Addr, server.Cluster)
	}
	if len(out.Roots) == 0 {
		out.Roots = [][]byte{ca}
	}
	if err := n.adopt(ids.Identity().Node, out); err != nil {
		return err
	}
	step(fmt.Sprintf("admitted to cluster %s by %s", out.ClusterID, server.Node))
	return nil
}

// waitVoter waits until the node votes, or is to stay a non-voter because
// there are enough.
func (n *Node) waitVoter(ctx context.Context, step func(string)) error {
	told := false
	for {
		m := n.member.Load()
		if m == nil {
			return errors.New("the membership ended while joining; 'vpnlb status' tells why")
		}
		st := m.replica.Status()
		voters := 0
		for _, s := range st.Servers {
			if s.Voter {
				voters++
			}
		}
		switch {
		case st.Voter:
			step("voter: the join is complete")
			return nil
		case voters >= maxVoters && st.Member:
			step("non-voter: the cluster has enough voters; the join is complete")
			return nil
		case !told:
			step("non-voter: becoming a voter after ten seconds of unbroken contact")
			told = true
		}
		if !pause(ctx, 100*time.Millisecond) {
			return errors.New("not a voter yet: the leader has not had unbroken contact for ten seconds; run the command again to go on waiting")
		}
	}
}

// join handles a request of a node without certificate, on any member.
func (m *member) join(ctx context.Context, in joinRequest) (joinAnswer, error) {
	if m.replica.Status().Role == raft.RoleLeader {
		return m.admit(ctx, in)
	}
	var out joinAnswer
	err := m.callLeader(ctx, pathJoin, in, &out)
	return out, err
}

// admit uses the token and stores the member in one command, then signs the
// certificate: who repeats it after a lost answer gets another certificate for
// the same key. Anybody may ask, so what would be refused is not proposed.
func (m *member) admit(ctx context.Context, in joinRequest) (joinAnswer, error) {
	csr, err := transport.ParseCSR(in.CSR)
	if err != nil {
		return joinAnswer{}, badJoin("%v", err)
	}
	token, err := transport.ParseToken(in.Token)
	if err != nil {
		return joinAnswer{}, badJoin("%v", err)
	}
	cmd := state.AdmitMember{Token: token.Hash(), Member: in.member(csr)}
	// The newest list decides, also right after an election.
	if _, err := m.replica.LeaderAnswer(ctx); err != nil {
		return joinAnswer{}, leaderHint(err)
	}
	spec := m.spec()
	cmds := []state.Command{cmd}
	old, err := m.unfinished(spec, csr)
	if err != nil {
		return joinAnswer{}, err
	}
	if !old.IsZero() {
		cmds = []state.Command{state.RemoveMember{ID: old}, cmd}
	}
	if o := spec.MayAdmit(cmd, m.replica.Now(), old); o.Code != state.OK {
		return joinAnswer{}, &transport.StatusError{Code: http.StatusForbidden, Reason: o.Detail}
	}
	return m.admitAs(ctx, in, csr, cmds...)
}

// unfinished is the member that this key was admitted as before, under an ID
// that it does not ask for any more: its answer was lost, and the node came back
// with another token. It never voted and is not heard, or it is another
// matter. Zero: none.
func (m *member) unfinished(spec *state.Spec, csr transport.CSR) (state.NodeID, error) {
	at := slices.IndexFunc(spec.Members, func(o state.Member) bool { return o.ID != csr.Node && hasKey([]state.Member{o}, csr.PublicKey) })
	if at < 0 {
		return state.NodeID{}, nil
	}
	old := &spec.Members[at]
	voter := slices.ContainsFunc(m.replica.Status().Servers, func(s raft.Server) bool { return s.ID == old.ID && s.Voter })
	if voter || old.ID == m.self || m.contacts.silence(old.ID) < silentAfter {
		return state.NodeID{}, &transport.StatusError{Code: http.StatusForbidden,
			Reason: fmt.Sprintf("the node with this key is member %s already: 'vpnlb cluster leave' there, or 'vpnlb cluster remove %s' if it is lost", old.Name, old.Name)}
	}
	return old.ID, nil
}

// admitAgain gives a member that lost its store a new ID: its certificate and
// key authenticated the call.
func (m *member) admitAgain(ctx context.Context, old state.NodeID, in joinRequest) (joinAnswer, error) {
	csr, err := transport.ParseCSR(in.CSR)
	if err != nil {
		return joinAnswer{}, badJoin("%v", err)
	}
	return m.admitAs(ctx, in, csr, state.ReplaceMember{Old: old, Member: in.member(csr)})
}

func badJoin(format string, args ...any) error {
	return &transport.StatusError{Code: http.StatusBadRequest, Reason: fmt.Sprintf(format, args...)}
}

func (m *member) admitAs(ctx context.Context, in joinRequest, csr transport.CSR, cmds ...state.Command) (joinAnswer, error) {
	if err := checkName("node", in.Name); err != nil {
		return joinAnswer{}, badJoin("%v", err)
	}
	for _, cmd := range cmds {
		if err := state.Check(cmd); err != nil {
			return joinAnswer{}, badJoin("%v", err)
		}
	}
	if fault := joinClash(m.spec(), &in); fault != "" {
		return joinAnswer{}, badJoin("node %s: %s", in.Name, fault)
	}
	raw, err := m.openSecret(secretCA)
	if err != nil {
		return joinAnswer{}, err
	}
	ca, err := transport.ParseCA(raw)
	if err != nil {
		return joinAnswer{}, err
	}
	outcomes, err := m.replica.Propose(ctx, cmds...)
	if err != nil {
		return joinAnswer{}, leaderHint(err)
	}
	if o := outcomes[len(outcomes)-1]; o.Code != state.OK {
		return joinAnswer{}, &transport.StatusError{Code: http.StatusForbidden, Reason: o.Detail}
	}
	id := m.ids.Identity()
	cert, err := ca.Issue(in.CSR, transport.Name{Cluster: id.Cluster(), Node: csr.Node, Role: state.RoleNode})
	if err != nil {
		return joinAnswer{}, err
	}
	m.log.Info("member admitted", "name", in.Name, "member", csr.Node.String())
	view := m.view()
	answer := joinAnswer{Certificate: cert, Roots: id.Roots(), Secret: id.Secret[:], ClusterID: id.Cluster(), Index: view.Index()}
	for _, o := range view.Spec().Members {
		answer.Members = append(answer.Members, knownPeer{ID: o.ID, Addr: o.Cluster, Key: o.PublicKey})
	}
	return answer, nil
}

// makeToken makes a join token; the agreement holds its hash only.
func (m *member) makeToken(ctx context.Context, in admin.TokenRequest) (any, error) {
	if in.Name != "" {
		if err := checkName("node", in.Name); err != nil {
			return nil, err
		}
	}
	roots := m.ids.Identity().Roots()
	if len(roots) == 0 {
		return nil, &admin.Error{Status: http.StatusServiceUnavailable, Message: "the CA certificate of this node is lost and not healed yet: make the token on another node"}
	}
	token := transport.NewToken()
	if _, err := m.change(ctx, state.AddToken{Hash: token.Hash(), Name: in.Name, Life: in.TTL}); err != nil {
		return nil, err
	}
	out := admin.TokenAnswer{Token: token.String(), CAHash: transport.HashCA(roots[0]).String(), Expires: "in " + in.TTL.String(), ExpiresSeconds: in.TTL.Seconds(), Name: in.Name}
	out.Addrs = append(out.Addrs, m.cfg.Cluster.Address.String())
	return out, nil
}
