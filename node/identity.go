package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/node/admin"
)

// The files of the data folder are few and small, and each may be gone, torn,
// damaged, of another node, or older than the rest. A node never ends because of
// one: it heals what another place knows, and waits for a person where nothing
// does, with a sentence in its stage and its admin socket open. The program and its
// tables forward meanwhile.

// identityRetry is between two looks at an identity that could not be opened: a
// person puts a file back, or the disk works again.
const identityRetry = 2 * time.Second

// maxNotes bounds what is remembered of damaged files; each is in the log, too.
const maxNotes = 16

// fileOwner lies in the store's folder and holds the public key of the node that
// the store is of: an identity folder may be that of another node.
const fileOwner = "owner"

// openIdentity opens the identity, however long that takes; false: ctx ended first.
func (n *Node) openIdentity(ctx context.Context) bool {
	for n.ids.Load() == nil {
		err := n.tryIdentity()
		if err == nil {
			break
		}
		n.setStage(StageWaiting, err.Error())
		n.notify.ready()
		if !pause(ctx, identityRetry) {
			return false
		}
	}
	return true
}

func (n *Node) tryIdentity() error {
	n.change.Lock()
	defer n.change.Unlock()
	if n.ids.Load() != nil {
		return nil // a leave has made a new one meanwhile
	}
	ids, err := transport.OpenIdentity(n.identityDir(), n.wasMember())
	if err == nil {
		err = n.checkOwner(ids.Identity())
	}
	if err != nil {
		return err
	}
	for _, note := range ids.Notes() {
		n.log.Warn("damaged file", "note", note)
	}
	n.ids.Store(ids)
	return nil
}

// wasMember reports whether something beside the identity says that this node was a
// member: what it knew of its peers, or a store.
func (n *Node) wasMember() bool {
	return slices.ContainsFunc([]string{n.peersPath(), n.storePath()}, func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	})
}

func (n *Node) storePath() string { return filepath.Join(n.storeDir(), "raft.db") }

// checkOwner refuses an identity of another node than the store is of. As that
// node it would take the other one's place in the cluster.
func (n *Node) checkOwner(id transport.Identity) error {
	b, err := os.ReadFile(filepath.Join(n.storeDir(), fileOwner))
	want, fault := hex.DecodeString(string(bytes.TrimSpace(b)))
	if err != nil || fault != nil || len(want) == 0 || bytes.Equal(want, id.PublicKey()) {
		return nil // of a version before this file, or damaged: it is written again
	}
	return fmt.Errorf("%s is not of the node that the store in %s is of: put this node's own folder back; without a copy 'vpnlb cluster leave --force' here, 'vpnlb cluster remove' of this node on another, and join again", n.identityDir(), n.storeDir())
}

// keepOwner writes whose store it is.
func (m *member) keepOwner() {
	path, want := filepath.Join(m.node.storeDir(), fileOwner), []byte(hex.EncodeToString(m.ids.Identity().PublicKey())+"\n")
	if b, err := os.ReadFile(path); err == nil && bytes.Equal(b, want) {
		return
	}
	if err := transport.WriteFileAtomic(path, want, 0o600); err != nil {
		m.log.Warn("note whose store it is", "error", err.Error())
	}
}

// noteFile remembers a damaged file that the node goes on without.
func (n *Node) noteFile(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	n.mu.Lock()
	known := slices.Contains(n.notes, text)
	if !known && len(n.notes) < maxNotes {
		n.notes = append(n.notes, text)
	}
	n.mu.Unlock()
	if !known {
		n.log.Warn("damaged file", "note", text)
	}
}

// setFileAside keeps a damaged file under another name.
func (n *Node) setFileAside(path, what string, then string) {
	if err := os.Rename(path, path+".damaged-"+time.Now().UTC().Format("20060102T150405Z")); err != nil {
		n.log.Warn("set a damaged file aside", "error", err.Error())
	}
	n.noteFile("%s is damaged (%s): %s", path, what, then)
}

// fileNotes are what status says of damaged files.
func (n *Node) fileNotes() []string {
	n.mu.Lock()
	out := slices.Clone(n.notes)
	n.mu.Unlock()
	if ids := n.ids.Load(); ids != nil {
		out = append(out, ids.Notes()...)
	}
	return out
}

// identity is the identity, or the sentence that says why there is none.
func (n *Node) identity() (*transport.IdentityStore, error) {
	if ids := n.ids.Load(); ids != nil {
		return ids, nil
	}
	_, why := n.stageNow()
	return nil, &admin.Error{Status: http.StatusConflict, Message: why}
}

// abandon gives an identity up that cannot be opened: it is set aside with the
// store, and the host is left without program, tables, addresses and rules.
func (n *Node) abandon(force bool, step func(string)) error {
	n.change.Lock()
	defer n.change.Unlock()
	if n.ids.Load() != nil {
		return &admin.Error{Status: http.StatusConflict, Message: "the identity could be opened meanwhile: nothing was changed, run the command again if it is still meant"}
	}
	if !force {
		_, why := n.stageNow()
		return &admin.Error{Status: http.StatusConflict, Message: why + "; without --force nothing is given up"}
	}
	step("detaching the data plane")
	if err := n.cleanHost(); err != nil {
		step("not everything could be taken back from this host: " + err.Error())
	}
	step("setting identity and store aside; the others count this node as a member until 'vpnlb cluster remove " + n.cfg.Name + "' on one of them")
	return n.reset("left")
}

// mendCertificates puts the CA's certificate and the node's own right, by what the
// agreement holds sealed.
func (m *member) mendCertificates() error {
	raw, err := m.openSecret(secretCA)
	if err != nil {
		return err
	}
	ca, err := transport.ParseCA(raw)
	if err != nil {
		return err
	}
	files, err := m.ids.Restore(ca)
	if err != nil {
		return err
	}
	for _, name := range files {
		m.log.Info("file made anew from the agreement", "file", name)
	}
	return nil
}

// errNoCA keeps a node that has lost its CA certificate from believing keys that the
// agreement does not know.
var errNoCA = errors.New("the CA certificate of this node is lost, and its member list does not have the caller's key")
