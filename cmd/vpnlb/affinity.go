package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/node/admin"
)

func (c *cli) affinity() *cobra.Command {
	var limit int
	var backend string
	list := &cobra.Command{
		Use: "list", Short: "List clients in the order of their addresses: their server, since when, last seen as this node knows", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return usagef("--limit is a whole number, 0 for all; not %d", limit)
			}
			if c.output == "json" {
				return c.affinitiesJSON(cmd, limit, backend)
			}
			return c.affinitiesText(cmd, limit, backend)
		},
	}
	list.Flags().IntVar(&limit, "limit", 1000, "most records to show; 0 = all")
	list.Flags().StringVar(&backend, "backend", "", "only the clients of this server")
	get := &cobra.Command{
		Use: "get CLIENT", Short: "Show one client's record", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := clientArg(args[0])
			if err != nil {
				return err
			}
			var out []admin.Affinity
			if err := c.client().Get(cmd.Context(), admin.PathAffinityGet+"?client="+url.QueryEscape(client), &out); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) {
				fmt.Fprintln(w, affinityHead)
				for _, a := range out {
					printAffinity(w, a)
				}
			})
		},
	}
	forget := &cobra.Command{
		Use: "forget CLIENT", Short: "Remove one client's record; its next packet goes where an unknown client's would", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := clientArg(args[0])
			if err != nil {
				return err
			}
			return c.change(cmd, admin.PathAffinityForget, admin.ForgetRequest{Name: client}, "record of "+client+" forgotten")
		},
	}
	return group("affinity", "Which client is on which server", list, get, forget)
}

const affinityHead = "CLIENT\tVIP\tCLASS\tBACKEND\tSTATE\tSINCE\tSEEN\tINDEX"

func printAffinity(w io.Writer, a admin.Affinity) {
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n", a.Key, orDash(a.VIP), a.Class, a.Backend, a.State, a.Since, a.Seen, a.Index)
}

// affinities calls each for every page of records, up to limit records (0: all).
func (c *cli) affinities(cmd *cobra.Command, limit int, backend string, each func(page *admin.Affinities) error) error {
	shown := 0
	for next := ""; ; {
		ask := 0
		if limit > 0 {
			ask = limit - shown
		}
		q := url.Values{"limit": {strconv.Itoa(ask)}, "backend": {backend}}
		if next != "" {
			q.Set("after", next)
		}
		var page admin.Affinities
		if err := c.client().Get(cmd.Context(), admin.PathAffinityList+"?"+q.Encode(), &page); err != nil {
			return err
		}
		shown += len(page.Records)
		if err := each(&page); err != nil {
			return err
		}
		if next = page.Next; next == "" || limit > 0 && shown >= limit {
			return nil
		}
	}
}

func (c *cli) affinitiesText(cmd *cobra.Command, limit int, backend string) error {
	shown, total := 0, 0
	err := c.affinities(cmd, limit, backend, func(page *admin.Affinities) error {
		first := shown == 0
		shown, total = shown+len(page.Records), page.Total
		return c.print(cmd.OutOrStdout(), nil, func(w io.Writer) {
			if first {
				fmt.Fprintln(w, affinityHead)
			}
			for _, a := range page.Records {
				printAffinity(w, a)
			}
		})
	})
	if err == nil && shown < total {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d of %d shown; --limit shows more\n", shown, total)
	}
	return err
}

// affinitiesJSON writes one object as print does, but a record at a time: there
// may be hundreds of thousands.
func (c *cli) affinitiesJSON(cmd *cobra.Command, limit int, backend string) error {
	w := cmd.OutOrStdout()
	shown := 0
	err := c.affinities(cmd, limit, backend, func(page *admin.Affinities) error {
		if shown == 0 {
			fmt.Fprintf(w, "{\n  \"total\": %d,\n  \"records\": [", page.Total)
		}
		for i := range page.Records {
			text, err := json.MarshalIndent(&page.Records[i], "    ", "  ")
			if err != nil {
				return err
			}
			comma := ","
			if shown == 0 {
				comma = ""
			}
			if _, err := fmt.Fprintf(w, "%s\n    %s", comma, text); err != nil {
				return err
			}
			shown++
		}
		return nil
	})
	if err != nil {
		return err
	}
	if shown > 0 {
		fmt.Fprint(w, "\n  ")
	}
	_, err = fmt.Fprintln(w, "]\n}")
	return err
}
