// Package bench measures dataplane/sstp beside HAProxy: `BENCH=sstp make bench`, and
// `make soak-sstp` for a site's worth of sessions over minutes. It has tests only.
package bench
