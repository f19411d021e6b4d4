// Package affinity keeps the agreed memory of which client went to which
// server: a Learner turns the data plane's evidence into commands and answers
// it, a Toucher reports activity, and an Expiry (on the leader) proposes the
// end of records whose time is up.
//
// All three are level-triggered: what a lost proposal leaves undone is seen
// again and proposed again. Nothing here decides; the agreement does.
package affinity
