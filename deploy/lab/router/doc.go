// Package router is the laboratory's router: it speaks BGP with the nodes and
// installs what it hears as multipath routes into the kernel of the network
// namespace that its process runs in. It is no part of the product.
//
// It behaves like a router set up as the documentation asks: several equally
// good paths are used together whichever AS they come from ("multipath-relax":
// only the length of the AS path counts), and a floating static route over all
// nodes carries each VIP while no node announces it. The sysctls of the
// namespace (multipath hash, forwarding) belong to whoever made it.
package router
