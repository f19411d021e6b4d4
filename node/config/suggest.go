package config

import "strings"

// places lists keys that people look for, by name, with where they belong.
var places = map[string]string{
	"address": "cluster", "gossip": "cluster", "heartbeat": "cluster",
	"pin_dir": "dataplane", "outside": "dataplane", "inside": "dataplane", "attach": "dataplane", "max_clients": "dataplane",
	"asn": "bgp", "router_id": "bgp", "neighbours": "bgp", "next_hop6": "bgp",
	"hold_up": "bgp", "prepend": "bgp", "listen_port": "bgp",
	"hold_time": "bgp.neighbours", "password_file": "bgp.neighbours", "local_address": "bgp.neighbours",
	"passive": "bgp.neighbours", "port": "bgp.neighbours", "ttl_security": "bgp.neighbours", "multihop_ttl": "bgp.neighbours",
	"drain": "sstp", "spread": "sstp", "connections": "sstp", "per_source": "sstp", "decoy_file": "sstp",
	"level": "log", "format": "log",
	"name": "the top level", "data_dir": "the top level", "admin_socket": "the top level",
	"cluster": "the top level", "dataplane": "the top level", "bgp": "the top level", "sstp": "the top level", "log": "the top level",
}

// specKeys are words of the cluster spec, not of the node file.
var specKeys = map[string]string{
	"vips": "vip add", "vip": "vip add", "backends": "backend add", "backend": "backend add",
	"certificates": "cert add", "certificate": "cert add",
	"gateways": "gateway add", "gateway": "gateway add", "settings": "cluster set",
	"source_limit": "cluster set", "affinity_timeout": "cluster set", "touch_interval": "cluster set", "probe_interval": "cluster set",
}

// suggest ends the sentence about an unknown key.
func suggest(section, key string, fields []field) string {
	if cmd, ok := specKeys[key]; ok {
		return "; it belongs to the cluster spec: use vpnlb " + cmd
	}
	best, dist := "", 4
	for _, f := range fields {
		if d := distance(strings.ToLower(key), f.name); d < dist && d*2 <= len(f.name)+1 {
			best, dist = f.name, d
		}
	}
	if best != "" {
		return "; did you mean " + best + "?"
	}
	if at, ok := places[key]; ok && at != section {
		return "; it belongs to " + at
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return "; known here: " + strings.Join(names, ", ")
}

// distance is the number of letters to insert, delete, change or swap with the
// neighbour (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 {
		return 64 // nobody meant that; bounds the work
	}
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
