package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
)

const leaksLong = `Show what left outside its tunnel since the daemon (or a guard that it adopted)
began: who sent it, to where, by which interface, why, and how many packets, most
first. Dropped packets are among them.

Why, as far as it can be known:

  SO_BINDTODEVICE   the socket is bound to the interface (no privilege needed)
  a packet socket   frames that ask no route
  forwarded         from a container, a virtual machine or another host
  rule              a policy rule that is asked before table main
  bound to VRF      a table of its own
  route             a route of table main, with the incident that tells of it
  no route leads there now
                    one that stood for a moment; or the sender chose an interface
                    for the packet itself (IP_PKTINFO)
  the tunnel is away
  VPN server        to the server's address, but not the tunnel's own transport:
                    another protocol, port or sender (--server-from)
  gateway           to the next hop's own address: only neighbour discovery and
                    DHCP may go there outside the tunnel

After the table stand name servers that were asked outside the tunnel, with what
to do about it, and what was let pass because the link itself needs it.

The exit code is 0 when nothing has leaked or all of it was dropped, 1 when
something got out, what was asked for is not in force, or there is no witness
to know.

--json prints one document: version, leaks (packets, bytes, dropped, by[],
interfaces[], dns[], exempt[]; absent when there is no witness) and witness. Their
fields are in "culvert status --help".

` + exitHelp

func newLeaks(p *platform) *cobra.Command {
	var socket string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "leaks",
		Short:   "Show who leaked, to where, by which interface and why",
		Long:    p.help(leaksLong),
		Example: "  culvert leaks\n  culvert leaks --json | jq '.leaks.by[] | .process, .why, .packets'",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	socketFlag(p, cmd.Flags(), &socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		resp, err := control.Ask(cmd.Context(), socket, control.Request{Op: control.Leaks})
		if err != nil {
			return err
		}
		if resp.Witness == nil {
			return errAnswer
		}
		return showLeaks(cmd.OutOrStdout(), leaksDoc{1, resp.Leaks, *resp.Witness}, asJSON)
	}
	return cmd
}

// leaksDoc is the document that --json prints.
type leaksDoc struct {
	Version int            `json:"version"`
	Leaks   *report.Leaks  `json:"leaks,omitempty"`
	Witness report.Witness `json:"witness"`
}

func showLeaks(w io.Writer, doc leaksDoc, asJSON bool) error {
	p := &printer{w: w}
	if asJSON {
		fillLeaks(doc.Leaks)
		doc.Witness.Interfaces = notNil(doc.Witness.Interfaces)
		p.err = writeJSON(w, doc)
	} else {
		printLeaks(p, doc)
	}
	if p.err == nil && (doc.Leaks == nil || doc.Leaks.Packets > doc.Leaks.Dropped || doc.Witness.Error != "") {
		return errQuiet
	}
	return p.err
}

func printLeaks(w io.Writer, doc leaksDoc) {
	printFindings(w, doc)
	if doc.Leaks != nil {
		printDNS(w, doc.Leaks)
		printExempt(w, doc.Leaks)
	}
	if doc.Witness.Error != "" {
		plain.Fprintf(w, "leaks are %s; NOT AS IT SHOULD BE: %v\n", leaksAre(&doc.Witness), errors.New(doc.Witness.Error))
	}
}

func printFindings(w io.Writer, doc leaksDoc) {
	switch {
	case doc.Leaks == nil:
		plain.Fprintf(w, "packets are not watched: %s\n", doc.Witness.Reason)
		return
	case doc.Leaks.Packets == 0:
		plain.Fprintln(w, "no packet has leaked")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	plain.Fprintf(t, "PACKETS\tDROPPED\tBYTES\tWHO\tTO\tBY\tWHY\n")
	for i := range doc.Leaks.By {
		f := &doc.Leaks.By[i]
		plain.Fprintf(t, "%d\t%d\t%d\t%s\t%s\t%s\t%s\n", f.Packets, f.Dropped, f.Bytes, whoSent(f), f.To, f.Interface, why(f))
	}
	_ = t.Flush()
	plain.Fprintf(w, "in all %s\n", leaked(doc.Leaks.Totals))
}

func whoSent(f *report.Finding) string {
	s := sender(&f.Sender)
	if f.Cgroup != "" && f.Cgroup != "/" {
		s += " in " + f.Cgroup
	}
	return s
}

func why(f *report.Finding) string {
	if f.Incident != 0 {
		return fmt.Sprintf("incident %d: %s", f.Incident, f.Why)
	}
	return f.Why
}

// leakLine says a finding in a line.
func leakLine(at time.Time, f *report.Finding) string {
	return fmt.Sprintf("%s  %s %s: from %s to %s by %s: %s", at.Format(time.TimeOnly), f.Tunnel,
		leaked(f.Totals), whoSent(f), f.To, f.Interface, why(f))
}
