package certs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Opened is one certificate of the agreement as this node has it.
type Opened struct {
	state.CertificatePlace
	// Certificate is what is shown; nil: none can be. It has the agreed hash.
	Certificate *Certificate
	// Fault says why it is not there, or what is wrong beside it (the file holds
	// another one by now); empty: nothing.
	Fault string
}

// Book keeps open what the agreement names. Update is for one goroutine at a
// time, All for any.
type Book struct {
	unseal func(name string, sealed []byte) ([]byte, error)
	read   func(path string) ([]byte, error) // ReadFile but in tests

	mu      sync.Mutex
	entries []*entry // by the order of the agreement
}

type entry struct {
	Opened
	secret uint64 // version of the sealed secret it was read from
	file   stamp
	read   bool // there was a text to judge: what it says stays true while the source is the same
}

// sameSource reports whether two entries were read from one text.
func (e *entry) sameSource(o *entry) bool {
	return e.Version == o.Version && e.secret == o.secret && e.file == o.file
}

// stamp tells that a file changed.
type stamp struct {
	modified time.Time
	size     int64
	mode     fs.FileMode
	exists   bool
}

// NewBook takes what opens sealed secrets.
func NewBook(unseal func(name string, sealed []byte) ([]byte, error)) *Book {
	return &Book{unseal: unseal, read: ReadFile}
}

// All lists the certificates of the agreement at the last Update.
func (b *Book) All() []Opened {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Opened, len(b.entries))
	for i, e := range b.entries {
		out[i] = e.Opened
	}
	return out
}

// Update opens what is new or changed, files included, and forgets what is gone.
// It reports whether anything is other than before. A certificate that was open
// stays so while its hash is the agreed one, whatever happens to its file. What
// could not be read is tried again each time: the cause (too many open files, an
// owner) may be gone, and the file shows nothing of that.
func (b *Book) Update(spec *state.Spec) (changed bool) {
	next := make([]*entry, 0, len(spec.Certs))
	for i := range spec.Certs {
		place := &spec.Certs[i]
		var old *entry
		if at := slices.IndexFunc(b.entries, func(e *entry) bool { return e.Name == place.Name }); at >= 0 {
			old = b.entries[at]
		}
		e := b.open(spec, place, old)
		changed = changed || e != old
		next = append(next, e)
	}
	changed = changed || len(next) != len(b.entries)
	b.mu.Lock()
	b.entries = next
	b.mu.Unlock()
	return changed
}

// open gives old itself where nothing changed.
//
// The stamp is taken before the text: a file that changes in between is read
// again next time.
func (b *Book) open(spec *state.Spec, place *state.CertificatePlace, old *entry) *entry {
	e := &entry{Opened: Opened{CertificatePlace: *place}}
	var text []byte
	var err error
	if place.Path != "" {
		e.file = stampOf(place.Path)
		if old != nil && old.read && old.sameSource(e) {
			return old
		}
		text, err = b.read(place.Path)
	} else {
		name := state.SecretOfCertificate(place.Name)
		secret, ok := spec.SecretByName(name)
		if ok {
			e.secret = secret.Version
		}
		if old != nil && old.read && old.sameSource(e) {
			return old
		}
		if !ok {
			err = errors.New("its key is not in the agreed state: add it again")
		} else {
			text, err = b.unseal(name, secret.Sealed)
		}
	}
	if e.read = err == nil; e.read {
		e.Certificate, err = expect(text, place)
	}
	if err != nil {
		e.Fault = err.Error()
		if old != nil && old.Certificate != nil && old.Certificate.Hash == place.SHA256 {
			e.Certificate = old.Certificate
		}
	}
	if old != nil && old.sameSource(e) && old.read == e.read && old.Fault == e.Fault && old.Certificate == e.Certificate {
		return old // failed again
	}
	return e
}

func expect(text []byte, place *state.CertificatePlace) (*Certificate, error) {
	c, err := Parse(text)
	if err != nil {
		return nil, err
	}
	if c.Hash != place.SHA256 {
		return nil, fmt.Errorf("%s holds another certificate (SHA-256 %x...) than the agreed one (%x...): servers pin the hash, so add the new one under another name and go on with 'vpnlb cert rotate'",
			placeWords(place), c.Hash[:4], place.SHA256[:4])
	}
	return c, nil
}

func placeWords(p *state.CertificatePlace) string {
	if p.Path != "" {
		return "the file " + p.Path + " on this node"
	}
	return "the sealed secret"
}

func stampOf(path string) stamp {
	i, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{i.ModTime(), i.Size(), i.Mode(), true}
}

// ReadFile reads chain and key from a file that only its owner may read.
func ReadFile(path string) ([]byte, error) {
	// A pipe would let whoever opens it wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the file %s does not exist on this node: put chain and key there", path)
		}
		return nil, fmt.Errorf("read chain and key: %w", err)
	}
	defer f.Close()
	i, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read chain and key: %w", err)
	case !i.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case i.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("the file %s has mode %04o, so others may read the key: 'chmod 0600 %s'", path, i.Mode().Perm(), path)
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxPEM+1))
	if err != nil {
		return nil, fmt.Errorf("read chain and key: %w", err)
	}
	return text, nil
}
