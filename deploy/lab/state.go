package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// labState is what another process needs to know of a lab: the state file.
type labState struct {
	Options    Options         `json:"options"`
	Processes  map[string]proc `json:"processes"` // by name
	Members    map[string]bool `json:"members"`   // nodes that are in the cluster
	Ready      bool            `json:"ready"`     // Up has finished
	NextClient int             `json:"next_client"`
	Cert       string          `json:"cert,omitempty"` // that SSTP servers expect; "": certOld
}

const stateFile = "state.json"

// save writes the state file, whole or not at all.
func (l *Lab) save() error {
	b, err := json.MarshalIndent(l.st, "", "  ")
	if err != nil {
		return fmt.Errorf("encode lab state: %w", err)
	}
	tmp := l.path(stateFile + ".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write lab state: %w", err)
	}
	if err := os.Rename(tmp, l.path(stateFile)); err != nil {
		return fmt.Errorf("replace lab state: %w", err)
	}
	return nil
}

// loadState reads the state file of a lab. os.ErrNotExist: there is no such lab.
func loadState(name string) (labState, error) {
	var st labState
	b, err := os.ReadFile(filepath.Join(labDir(name), stateFile))
	if err != nil {
		return st, fmt.Errorf("read lab state: %w", err)
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("decode lab state of %s: %w", name, err)
	}
	return st, nil
}

// lockLab takes the lab for this process; it is let go when the file is closed.
func lockLab(name string) (*os.File, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, fmt.Errorf("make lab folder: %w", err)
	}
	f, err := os.OpenFile(labDir(name)+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lab lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lab %s is in use by another process", name)
		}
		return nil, fmt.Errorf("lock lab %s: %w", name, err)
	}
	return f, nil
}
