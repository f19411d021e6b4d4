package sstppeer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// LinkState is what the client's end of a tunnel says of itself, in a file.
type LinkState struct {
	PID    int        `json:"pid"` // of what stands in for pppd: it ends the link gently on SIGTERM
	Device string     `json:"device"`
	Local  netip.Addr `json:"local"` // the client's address in the tunnel
	Peer   netip.Addr `json:"peer"`  // the server's
	Since  time.Time  `json:"since"`
}

// pppdArgs are what sstpc tells its pppd: "38400 user U file F ...", with the
// terminal as standard input.
type pppdArgs struct{ user, password string }

const maxPasswordFile = 4096 // bytes

func parsePPPD(args []string) (a pppdArgs, err error) {
	for i := 0; i+1 < len(args); i++ {
		switch args[i] {
		case "user":
			i++
			a.user = args[i]
		case "file":
			i++
			if a.password, err = readPassword(args[i]); err != nil {
				return a, err
			}
		}
	}
	if a.user == "" || a.password == "" {
		return a, fmt.Errorf("pppd was told no user and password: %q", args)
	}
	return a, nil
}

// readPassword reads the one line `password "..."` of an options file.
func readPassword(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("read pppd options: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPasswordFile))
	if err != nil {
		return "", fmt.Errorf("read pppd options: %w", err)
	}
	for row := range bytes.Lines(b) {
		value, ok := strings.CutPrefix(strings.TrimSpace(string(row)), "password ")
		if !ok {
			continue
		}
		if unquoted, err := strconv.Unquote(value); err == nil {
			value = unquoted
		}
		return value, nil
	}
	return "", fmt.Errorf("no password in %s", file)
}

// RunPPPD is what sstpc starts instead of pppd: the client's end of PPP on the
// terminal that is standard input, and a TUN device. stateFile says when the
// link is up; it is gone with the link.
func RunPPPD(ctx context.Context, stateFile string, args []string) error {
	a, err := parsePPPD(args)
	if err != nil {
		return err
	}
	if err := rawTerminal(int(os.Stdin.Fd())); err != nil {
		return err
	}
	fd, err := unix.Dup(int(os.Stdin.Fd()))
	if err != nil {
		return fmt.Errorf("duplicate terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("prepare terminal: %w", err)
	}
	tty := os.NewFile(uintptr(fd), "terminal")
	defer os.Remove(stateFile)
	p := &pppClient{out: newLineWriter(tty), stateFile: stateFile}
	p.link = newLink(linkConfig{name: a.user, password: func(string) (string, bool) { return a.password, true }}, p.out.send)
	return p.run(ctx, tty)
}

// rawTerminal takes away all that a terminal does to bytes.
func rawTerminal(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("standard input is no terminal: %w", err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B38400
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return fmt.Errorf("set terminal raw: %w", err)
	}
	return nil
}

// lineWriter frames what goes to the line.
type lineWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func newLineWriter(w io.Writer) *lineWriter { return &lineWriter{w: w} }

func (l *lineWriter) send(protocol uint16, body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	frame := append([]byte{pppAddress, pppControl, byte(protocol >> 8), byte(protocol)}, body...)
	l.buf = appendHDLC(l.buf[:0], frame)
	l.w.Write(l.buf) // a line that is gone ends the reader
}

// pppClient is the client's end with its I/O.
type pppClient struct {
	out       *lineWriter
	stateFile string

	mu     sync.Mutex // guards link and device
	link   *link
	device *os.File // nil: not up yet
}

func (p *pppClient) run(told context.Context, tty io.ReadCloser) error {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(told))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer p.closeDevice()
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { tty.Close() })
	defer stop()
	bye := context.AfterFunc(told, func() {
		p.mu.Lock()
		p.link.terminate()
		p.mu.Unlock()
		time.AfterFunc(lastTime, func() { cancel(nil) }) // where nobody answers
	})
	defer bye()
	p.mu.Lock()
	p.link.start(time.Now())
	p.mu.Unlock()
	wg.Go(func() {
		t := time.NewTicker(tickEvery)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-t.C:
				p.mu.Lock()
				err := p.link.tick(now)
				p.mu.Unlock()
				if err != nil {
					cancel(err)
				}
			}
		}
	})
	_, err := readFrames(tty, func(f []byte) {
		if err := p.frame(f, &wg); err != nil {
			cancel(err)
		}
	})
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, unix.EIO) || errors.Is(err, context.Canceled) || errors.Is(err, errTerminated) { // sstpc closed its end, or we were told to end
		return nil
	}
	return err
}

func (p *pppClient) closeDevice() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.device != nil {
		p.device.Close()
	}
}

// frame takes one frame of the line.
func (p *pppClient) frame(f []byte, wg *sync.WaitGroup) error {
	protocol, body, ok := splitFrame(f)
	if !ok {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if protocol == protoIPv4 {
		if p.device != nil {
			p.device.Write(body)
		}
		return nil
	}
	if err := p.link.receive(time.Now(), protocol, body); err != nil {
		return err
	}
	if !p.link.up() || p.device != nil {
		return nil
	}
	return p.open(wg)
}

// open makes the device and says so.
func (p *pppClient) open(wg *sync.WaitGroup) error {
	local, behind := p.link.addresses()
	device, name, err := openTUN(local, netip.PrefixFrom(behind, behind.BitLen()))
	if err != nil {
		return err
	}
	p.device = device
	wg.Go(func() {
		buf := make([]byte, maxFrame)
		for {
			n, err := device.Read(buf)
			if err != nil {
				return // closed
			}
			if _, ok := destination(buf[:n]); ok {
				p.out.send(protoIPv4, buf[:n])
			}
		}
	})
	return writeState(p.stateFile, LinkState{PID: os.Getpid(), Device: name, Local: local, Peer: behind, Since: time.Now()})
}

// writeState writes the file, whole or not at all.
func writeState(file string, st LinkState) error {
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode link state: %w", err)
	}
	if err := os.WriteFile(file+".new", b, 0o644); err != nil {
		return fmt.Errorf("write link state: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("write link state: %w", err)
	}
	return nil
}
