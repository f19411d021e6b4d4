package main

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/node/config"
)

// What the library says of wrong words names neither the word that is missing
// nor the one that was meant.

var argument = regexp.MustCompile(`^[A-Z]+$`)

// wanted are the arguments that a command's usage line names, in order.
func wanted(use string) []string {
	words := strings.Fields(use)[1:]
	end := slices.IndexFunc(words, func(w string) bool { return !argument.MatchString(w) })
	if end < 0 {
		end = len(words)
	}
	return words[:end]
}

// argsError says which argument is missing or too many; cause is the library's
// word.
func argsError(cmd *cobra.Command, given []string, cause error) error {
	see := fmt.Sprintf("see '%s --help'", cmd.CommandPath())
	want := wanted(cmd.Use)
	switch {
	case cmd.HasSubCommands() && len(given) > 0:
		return usagef("unknown command %q for %q%s; %s", given[0], cmd.CommandPath(), meant(cmd, given[0]), see)
	case len(given) < len(want):
		return usagef("%s %s missing: %s %s; %s", strings.Join(want[len(given):], " and "), isAre(len(want)-len(given)), cmd.CommandPath(), strings.Join(want, " "), see)
	case len(given) > len(want) && len(want) > 0:
		return usagef("%q is one word too many: %s %s; %s", given[len(want)], cmd.CommandPath(), strings.Join(want, " "), see)
	case len(given) > len(want):
		return usagef("%s takes no argument such as %q; %s", cmd.CommandPath(), given[0], see)
	}
	return usagef("%v; %s", cause, see)
}

// meant names the commands that a misspelt one is near to.
func meant(cmd *cobra.Command, word string) string {
	cmd.SuggestionsMinimumDistance = 2
	near := cmd.SuggestionsFor(word)
	if len(near) == 0 {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", strings.Join(near, `" or "`))
}

var (
	badFlag  = regexp.MustCompile(`^invalid argument (".*") for "(?:-\w, )?--([a-z0-9-]+)" flag: (.*)$`)
	goParser = regexp.MustCompile(`strconv\.\w+: parsing ".*": `)
)

// flagError says of a wrong value what the flag is, in place of what Go's parser
// is called.
func flagError(cmd *cobra.Command, err error) error {
	see := fmt.Sprintf("see '%s --help'", cmd.CommandPath())
	m := badFlag.FindStringSubmatch(err.Error())
	if m == nil {
		return usagef("%v; %s", err, see)
	}
	why := strings.TrimPrefix(goParser.ReplaceAllString(m[3], ""), "time: ")
	about := ""
	if f := cmd.Flag(m[2]); f != nil {
		about = ": " + f.Usage
	}
	return usagef("--%s cannot be %s (%s)%s; %s", m[2], m[1], why, about, see)
}

// withPort completes a member's address: the port is that of the node file's
// default where none is given, as it is there.
func withPort(addr string) string {
	if a, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil {
		return netip.AddrPortFrom(a, config.DefaultClusterPort).String()
	}
	return addr
}

func isAre(n int) string {
	if n > 1 {
		return "are"
	}
	return "is"
}
