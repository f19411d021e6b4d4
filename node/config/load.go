package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// Load reads the node file and the files that it names (passwords, the decoy
// page). Faults of all are returned together in an *InvalidError.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read node file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read node file %s: %w", path, err)
	}
	c, r := parse(data)
	for i := range c.BGP.Neighbours {
		n := &c.BGP.Neighbours[i]
		if n.PasswordFile == "" {
			continue
		}
		n.Password, err = readPassword(n.PasswordFile)
		if err != nil {
			key := fmt.Sprintf("bgp.neighbours[%d].password_file", i)
			r.faults = append(r.faults, Fault{Line: r.lines[key], Key: key, Text: err.Error()})
		}
	}
	if s := &c.SSTP; s.DecoyFile != "" {
		if s.Decoy, err = readDecoy(s.DecoyFile); err != nil {
			r.faults = append(r.faults, Fault{Line: r.lines["sstp.decoy_file"], Key: "sstp.decoy_file", Text: err.Error()})
		}
	}
	if faults := r.sorted(); len(faults) > 0 {
		return nil, &InvalidError{Path: path, Faults: faults}
	}
	return c, nil
}

// Parse reads a node file without touching anything it names.
func Parse(data []byte) (*Config, []Fault) {
	c, r := parse(data)
	if faults := r.sorted(); len(faults) > 0 {
		return nil, faults
	}
	return c, nil
}

// Check returns every fault of a node file, in the order of its lines. It
// touches nothing that the file names.
func Check(data []byte) []Fault {
	_, faults := Parse(data)
	return faults
}

// readPassword reads a TCP MD5 password. Whoever can read the file can forge
// BGP sessions, so a file that others may read or change is refused.
func readPassword(path string) (Secret, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s does not exist; write the password into it, with mode 0600", path)
	}
	if err != nil {
		return "", fmt.Errorf("cannot be opened (%w); give it to the user of the service, with mode 0600", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("cannot be examined: %w", err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file; name a file that holds the password", path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s has mode %04o, so others can reach it; run: chmod 0600 %s", path, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxPassword+3))
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	switch {
	case len(b) == 0:
		return "", fmt.Errorf("%s is empty; write the password into it, or remove the key to speak without one", path)
	case len(b) > MaxPassword:
		return "", fmt.Errorf("%s holds more than %d bytes, which the kernel refuses (TCP MD5); use a shorter password", path, MaxPassword)
	case bytes.ContainsAny(b, "\r\n\x00"):
		return "", fmt.Errorf("%s holds more than one line; write the password alone", path)
	}
	return Secret(b), nil
}

// readDecoy reads the page that strangers get at the SSTP port.
func readDecoy(path string) ([]byte, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%s does not exist; write a small HTML page into it, or remove the key to answer with a bare 404", path)
	case err != nil:
		return nil, fmt.Errorf("cannot be examined: %w", err)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file; name a file that holds an HTML page", path)
	case st.Size() == 0 || st.Size() > MaxDecoy:
		return nil, fmt.Errorf("%s has %d bytes; a page of 1 to %d is sent", path, st.Size(), MaxDecoy)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	return b[:min(len(b), MaxDecoy)], nil
}
