package raft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/raft/boltstore"
)

const (
	storeName    = "raft.db"
	snapshotsDir = "snapshots" // hraft's name for it
	keepShots    = 2           // the last one may be the one that a crash spoiled
)

// Keys of ours in the stable store; hraft's own have no prefix.
var (
	keyBoot  = []byte("vpnlb.boot")
	keyPeers = []byte("vpnlb.peers")

	keyCurrentTerm = []byte("CurrentTerm") // hraft's
)

func openBolt(path string) (store, error) {
	s, err := boltstore.Open(path)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// start opens the store, replays it, asks Vet, and starts raft.
func (r *Replica) start(ctx context.Context) error {
	if err := os.MkdirAll(r.cfg.Dir, 0o700); err != nil {
		return err
	}
	s, err := r.openStore(filepath.Join(r.cfg.Dir, storeName))
	var corrupt *boltstore.CorruptError
	if errors.As(err, &corrupt) {
		return r.quarantine(err)
	} else if err != nil {
		return err
	}
	g := newGuard(s, func(err error) { r.parkStore("store failed: " + err.Error()) })
	if err := r.startOn(ctx, g); err != nil {
		_ = s.Close()
		if errors.As(err, &corrupt) || errors.Is(err, errLost) {
			return r.quarantine(err)
		}
		return err
	}
	return nil
}

func (r *Replica) startOn(ctx context.Context, g *guard) error {
	hlog := newLogger(r.log)
	snaps, err := hraft.NewFileSnapshotStoreWithLogger(r.cfg.Dir, keepShots, hlog)
	if err != nil {
		return err
	}
	boot, err := g.GetUint64(keyBoot)
	if err != nil {
		return err
	}
	boot = max(boot+1, r.cfg.Boot)
	if err := g.SetUint64(keyBoot, boot); err != nil {
		return err
	}
	if err := r.peers.load(g); err != nil {
		return err
	}
	own, err := r.replay(g, snaps)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.boot, r.own = boot, own
	r.mu.Unlock()
	r.guard.Store(g)
	if r.deps.Vet != nil && !r.deps.Vet(ctx, own) {
		return fmt.Errorf("%w: peers remember more than term %d and entry %d", errLost, own.Term, own.Index)
	}
	if r.fsm.failed() != nil { // parked by the replay: no raft at all
		return nil
	}
	return r.startRaft(g, snaps, hlog)
}

// startRaft hands the store over to raft. NewRaft panics where it cannot read
// or write.
func (r *Replica) startRaft(g *guard, snaps hraft.SnapshotStore, hlog *logger) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("raft panicked: %v", p)
		}
	}()
	ls, err := newLogs(g)
	if err != nil {
		return err
	}
	st := newStream(r.deps.Stream, r.cfg.Addr)
	trans := hraft.NewNetworkTransportWithConfig(&hraft.NetworkTransportConfig{
		Logger:                  hlog.Named("transport"),
		Stream:                  st,
		MaxPool:                 3, // one each for heartbeats, entries and votes
		MaxRPCsInFlight:         1, // more wedges a follower after a stall of its disk (hashicorp/raft#612)
		Timeout:                 r.cfg.RPCTimeout,
		MsgpackUseNewTimeFormat: true, // there is no older version to talk to
	})
	notify := make(chan bool, 16)
	rt, err := hraft.NewRaft(r.raftConfig(hlog, notify), r.fsm, ls, g, snaps, trans)
	if err != nil {
		_ = trans.Close()
		return err
	}
	r.mu.Lock()
	r.raft, r.stream, r.trans, r.notify = rt, st, trans, notify
	r.running = r.parked == ""
	parked := !r.running
	r.mu.Unlock()
	g.armed.Store(true)
	if parked { // raft met an entry it does not know before this node knew raft
		r.closeStream()
		go rt.Shutdown()
	}
	return nil
}

// raftConfig states every option: none is left to the library's defaults.
func (r *Replica) raftConfig(hlog *logger, notify chan<- bool) *hraft.Config {
	hb := r.cfg.Heartbeat
	return &hraft.Config{
		ProtocolVersion:    3,
		HeartbeatTimeout:   hb,
		ElectionTimeout:    hb,
		LeaderLeaseTimeout: hb,      // shorter: a pause of the collector costs the office
		CommitTimeout:      hb / 10, // how soon followers learn the last commit index of a burst
		MaxAppendEntries:   maxAppend,
		BatchApplyCh:       false, // ours are batches already, and Apply's enqueue tells a stuck raft
		ShutdownOnRemove:   false, // a removed node is told so and decides itself
		// Our compact takes snapshots, by bytes; raft's own, by entries, never come.
		TrailingLogs:             minTrailing,
		SnapshotInterval:         time.Hour,
		SnapshotThreshold:        1 << 62,
		LocalID:                  hraft.ServerID(r.cfg.ID.String()),
		NotifyCh:                 notify,
		Logger:                   hlog,
		LogLevel:                 "INFO",
		NoSnapshotRestoreOnStart: true, // the replay did it
		PreVoteDisabled:          false,
		NoLegacyTelemetry:        true,
		RestoreCommittedLogs:     true, // only so that raft stages the commit index: see logs
	}
}

// quarantine moves the store away, snapshots too: they belong to the old ID. The
// snapshots go first: after a crash in between the store that stays is short of
// them and is found out again, while snapshots alone would look like a store.
func (r *Replica) quarantine(cause error) error {
	now := time.Now()
	if _, err := boltstore.Quarantine(filepath.Join(r.cfg.Dir, snapshotsDir), now); err != nil {
		return errors.Join(cause, err)
	}
	at, err := boltstore.Quarantine(filepath.Join(r.cfg.Dir, storeName), now)
	if err != nil {
		return errors.Join(cause, err)
	}
	r.log.Error("raft store quarantined", "path", at, "cause", cause)
	return &QuarantineError{Path: at, Cause: cause}
}
