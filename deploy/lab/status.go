package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Status is the lab at a glance.
type Status struct {
	Name    string       `json:"name"`
	Peers   PeerKind     `json:"peers"`
	ECMP    []string     `json:"ecmp"` // next hops of the VIPs on the router, by BGP
	Nodes   []NodeStatus `json:"nodes"`
	Servers []PeerStatus `json:"servers"`
	Clients ClientTotals `json:"clients"`
}

// NodeStatus is one node of the lab.
type NodeStatus struct {
	Name   string `json:"name"`
	Member bool   `json:"member"` // false: a spare, or it has left
	PID    int    `json:"pid"`    // 0: its daemon does not run
	Socket string `json:"socket"`
}

// PeerStatus is one server of the lab.
type PeerStatus struct {
	Name    string `json:"name"`
	Running bool   `json:"running"`
	Clients int    `json:"clients"`
}

// ClientTotals sums up the clients.
type ClientTotals struct {
	Clients int   `json:"clients"`
	Up      int   `json:"up"`
	Sent    int64 `json:"sent"`
	Lost    int64 `json:"lost"`
}

// StatusOf reads the state of a lab without attaching to it.
func StatusOf(ctx context.Context, name string) (Status, error) {
	st, err := loadState(name)
	if errors.Is(err, os.ErrNotExist) {
		return Status{}, fmt.Errorf("no laboratory called %s stands here: 'vpnlb lab up' builds one", name)
	}
	if err != nil {
		return Status{}, err
	}
	l := &Lab{dir: labDir(name), st: st, out: io.Discard}
	l.peers = newPeers(l)
	s := Status{Name: name, Peers: st.Options.Peers, ECMP: []string{}}
	for _, vip := range st.Options.vips() {
		hops, herr := l.ecmp(vip)
		err = errors.Join(err, herr)
		for _, h := range hops {
			s.ECMP = append(s.ECMP, h.String())
		}
	}
	for i := range st.Options.Nodes + st.Options.Spares {
		n := NodeStatus{Name: nodeName(i + 1), Member: st.Members[nodeName(i+1)], Socket: l.socket(nodeName(i + 1))}
		if p := st.Processes[n.Name]; p.alive() {
			n.PID = p.PID
		}
		s.Nodes = append(s.Nodes, n)
	}
	snap, serr := l.peers.snapshot(ctx)
	s.Clients = snap.totals()
	for i := range st.Options.Servers {
		name := serverName(i + 1)
		s.Servers = append(s.Servers, PeerStatus{Name: name, Running: st.Processes[name].alive(), Clients: len(snap.on(i + 1))})
	}
	return s, errors.Join(err, serr)
}
