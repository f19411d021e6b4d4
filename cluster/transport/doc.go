// Package transport is how nodes talk to each other: one TCP port, TLS 1.3 in
// both directions, and ALPN to tell raft, RPC and join apart.
//
// It also keeps what makes a node that node (key, certificate, boot counter,
// cluster secret), signs certificates as the cluster's CA, and makes the small
// cryptographic things a cluster passes around: join tokens, sealed secrets and
// signed statements.
//
// A certificate says which cluster, node and role it is for. Whether that node
// is still a member is not the certificate's business: the committed member
// list decides, through Deps.Authorize. Validity dates are ignored, because a
// cluster must start with wrong clocks too.
//
// It does not know raft, gossip or the commands of the cluster; the bodies of
// its calls belong to the callers.
package transport
