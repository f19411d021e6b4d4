// Package checks holds the tests that watch over the repository itself: the
// import lattice, and tidiness of files, comments and tests.
package checks
