package lab

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"
)

// pingInterval of the pings through real tunnels.
const pingInterval = 100 * time.Millisecond

// pingName is the process that pings through client i's tunnel: one by
// certificate and one by EAP do.
func pingName(i int) string { return fmt.Sprintf("ping%d", i) }

const pingedTunnels = 2

// startPings pings through the first tunnels, from their inner addresses.
func (r *realPeers) startPings(ctx context.Context) error {
	for i := range min(pingedTunnels, r.l.st.Options.Clients) {
		inner, err := r.tunnelOf(ctx, r.l.st.Options.client(i))
		if err != nil {
			return err
		}
		err = r.l.start(pingName(i), roleClient, nil, "ping", "-n", "-D", "-i", fmt.Sprint(pingInterval.Seconds()), "-I", inner.String(), innerServer.String())
		if err != nil {
			return err
		}
	}
	return nil
}

var pingLine = regexp.MustCompile(`^\[(\d+)\.(\d+)\] .* icmp_seq=(\d+) `)

// addPings puts what the pings' logs say into the accounts of their clients.
func (r *realPeers) addPings(s *snapshot) error {
	for i := range pingedTunnels {
		p, ok := r.l.st.Processes[pingName(i)]
		if !ok {
			continue
		}
		a := r.l.st.Options.client(i)
		v := s.Clients[a]
		if err := v.readPing(p.Log); err != nil {
			return err
		}
		s.Clients[a] = v
	}
	return nil
}

// readPing counts replies: a number that was skipped was lost. Losses at the
// end show only when replies come again.
func (v *clientView) readPing(log string) error {
	f, err := os.Open(log)
	if err != nil {
		return fmt.Errorf("read ping log: %w", err)
	}
	defer f.Close()
	var last time.Time
	var seen int64
	for sc := bufio.NewScanner(f); sc.Scan(); {
		m := pingLine.FindStringSubmatch(sc.Text())
		if m == nil {
			continue
		}
		sec, _ := strconv.ParseInt(m[1], 10, 64)
		usec, _ := strconv.ParseInt(m[2], 10, 64)
		seq, _ := strconv.ParseInt(m[3], 10, 64)
		at := time.Unix(sec, usec*1000)
		if gap := seq - v.Sent - 1; gap > 0 {
			v.Windows = append(v.Windows, window{From: last.Add(pingInterval), To: at.Add(-pingInterval), Lost: gap})
		}
		v.Sent = max(v.Sent, seq)
		seen++
		last = at
	}
	v.Lost = v.Sent - seen
	return nil
}
