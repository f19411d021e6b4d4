package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Pings through real tunnels.
const (
	pingInterval = 100 * time.Millisecond
	pingPatience = time.Second      // an echo may take so long; after that its packet is lost
	pingBound    = 10 * time.Second // until the first echo
)

// pingName is the process that pings through client i's tunnel.
func pingName(i int) string { return fmt.Sprintf("ping%d", i) }

// pinged are the clients whose tunnels carry pings: of each family the first one
// that logs in by certificate, whose login is fragmented, and the first one by EAP.
func (o Options) pinged() (out []int) {
	type kind struct{ six, eap bool }
	seen := map[kind]bool{}
	for i := range o.Clients {
		if k := (kind{o.speaksSix(i), byEAP(i)}); !seen[k] {
			seen[k] = true
			out = append(out, i)
		}
	}
	return out
}

// startPings pings from the inner addresses of tunnels, and waits for the first echoes.
func (r *realPeers) startPings(ctx context.Context) error {
	for _, i := range r.l.st.Options.pinged() {
		inner, err := r.tunnelOf(ctx, r.l.st.Options.client(i))
		if err != nil {
			return err
		}
		err = r.l.start(pingName(i), roleClient, nil, "ping", "-n", "-D", "-i", fmt.Sprint(pingInterval.Seconds()), "-I", inner.String(), innerServer.String())
		if err != nil {
			return err
		}
	}
	for _, i := range r.l.st.Options.pinged() {
		err := until(ctx, pingBound, fmt.Sprintf("the first echo of client %d", i), func() (bool, error) {
			var v clientView
			err := r.ping(i, &v)
			return v.Sent > 0, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// addPings puts what the pings' logs say into the accounts of their clients.
func (r *realPeers) addPings(s *snapshot) error {
	for _, i := range r.l.st.Options.pinged() {
		if _, ok := r.l.st.Processes[pingName(i)]; !ok {
			continue // not started yet
		}
		a := r.l.st.Options.client(i)
		v := s.Clients[a]
		if err := r.ping(i, &v); err != nil {
			return err
		}
		if v.Sent == 0 {
			return fmt.Errorf("the ping through the tunnel of client %d has no echo", i)
		}
		s.Clients[a] = v
	}
	return nil
}

// ping reads the log of one client's ping, which must run still.
func (r *realPeers) ping(i int, v *clientView) error {
	p := r.l.st.Processes[pingName(i)]
	if !p.alive() {
		return fmt.Errorf("the ping through the tunnel of client %d has ended: see %s", i, p.Log)
	}
	f, err := os.Open(p.Log)
	if err != nil {
		return fmt.Errorf("read ping log: %w", err)
	}
	defer f.Close()
	return v.readPing(f, time.Now())
}

var pingLine = regexp.MustCompile(`^\[(\d+)\.(\d+)\] .* icmp_seq=(\d+) `)

// readPing counts echoes: a number that was skipped was lost, and so are those
// that should have come since the last one.
func (v *clientView) readPing(log io.Reader, now time.Time) error {
	var last time.Time
	sc := bufio.NewScanner(log)
	for sc.Scan() {
		m := pingLine.FindStringSubmatch(sc.Text())
		if m == nil || strings.Contains(sc.Text(), "DUP!") {
			continue
		}
		sec, _ := strconv.ParseInt(m[1], 10, 64)
		usec, _ := strconv.ParseInt(m[2], 10, 64)
		seq, _ := strconv.ParseInt(m[3], 10, 64)
		at := time.Unix(sec, usec*1000)
		switch gap := seq - v.Sent - 1; {
		case gap > 0:
			v.silent(last, at, gap)
		case gap < 0:
			v.Lost-- // late, out of order
		}
		v.Sent = max(v.Sent, seq)
		last = at
	}
	if n := int64((now.Sub(last) - pingPatience) / pingInterval); n > 0 && v.Sent > 0 {
		v.silent(last, now, n)
		v.Sent += n
	}
	return sc.Err()
}

// silent notes that n echoes did not come between two moments.
func (v *clientView) silent(last, next time.Time, n int64) {
	v.Windows = append(v.Windows, window{From: last.Add(pingInterval), To: next.Add(-pingInterval), Lost: n})
	v.Lost += n
}
