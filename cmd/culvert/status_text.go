package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
)

// How many lines of a kind fit on a person's one screen.
const (
	shownDetails   = 4
	shownIncidents = 8
)

// printStatus writes the table, what is out of the ordinary, and the last
// incidents.
func printStatus(w io.Writer, st report.Status) {
	if len(st.Sessions) == 0 {
		plain.Fprintln(w, "nothing is enforced: no session is open")
	} else {
		printSessions(w, st.Sessions)
	}
	printWitness(w, &st)
	for i := range st.Sessions {
		printDetails(w, &st.Sessions[i])
	}
	var waiting []string
	for _, h := range st.Waiting {
		waiting = append(waiting, h.Route+": "+h.Why)
	}
	printList(w, "not back yet, and no session keeps them out", waiting)
	printIncidents(w, st.Incidents)
}

func printSessions(w io.Writer, sessions []report.Session) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	plain.Fprintf(t, "TUNNEL\tSTATE\tREMOVED\tREADDED\tRESTORED\tHELD\tPROTECTED\n")
	for _, s := range sessions {
		name := s.Tunnel
		if s.Interface != "" {
			name += " (now " + s.Interface + ")"
		}
		plain.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", name, s.State, s.Removed, s.Readded, s.Restored, len(s.Held), list(s.Protected))
	}
	_ = t.Flush()
}

func printDetails(w io.Writer, s *report.Session) {
	if s.Error != "" {
		plain.Fprintf(w, "\n%s: %v\n", s.Tunnel, errors.New(s.Error))
	}
	if s.OneFamily != "" {
		plain.Fprintf(w, "\n%s: %s\n", s.Tunnel, s.OneFamily)
	}
	if len(s.Rejected) > 0 {
		plain.Fprintf(w, "\n%s: rejected, as the tunnel leaves it out: %s\n", s.Tunnel, list(s.Rejected))
	}
	var held, contested []string
	for _, h := range s.Held {
		held = append(held, h.Route)
	}
	for _, c := range s.Contested {
		contested = append(contested, fmt.Sprintf("%s (%s times, by %s)", c.Route, strconv.FormatUint(c.Times, 10), adder(c.By)))
	}
	printList(w, s.Tunnel+": cannot be enforced by routes", s.Unenforceable)
	printList(w, s.Tunnel+": held, will come back", held)
	printList(w, s.Tunnel+": added again and again", contested)
	printList(w, s.Tunnel+": notes", s.Notes)
}

// printList writes a heading and the first lines under it; nothing for none.
func printList(w io.Writer, heading string, lines []string) {
	if len(lines) == 0 {
		return
	}
	plain.Fprintf(w, "\n%s:\n", heading)
	for i, line := range lines {
		if i == shownDetails {
			plain.Fprintf(w, "  and %d more: \"culvert status --json\" lists all\n", len(lines)-i)
			return
		}
		plain.Fprintln(w, "  "+line)
	}
}

func printIncidents(w io.Writer, all []report.Incident) {
	if len(all) == 0 {
		return
	}
	plain.Fprintf(w, "\nlast incidents:\n")
	for _, in := range all[max(0, len(all)-shownIncidents):] {
		plain.Fprintln(w, "  "+incidentLine(in))
	}
}

func incidentLine(in report.Incident) string {
	var b strings.Builder
	b.WriteString(strings.TrimRight(fmt.Sprintf("%s  %s %s %s", in.Seen.Format(time.TimeOnly), in.Tunnel, in.What, in.Route), " "))
	if in.Reason != "" {
		b.WriteString(": " + in.Reason)
	}
	if by := adder(in.By); by != "" {
		b.WriteString("; by " + by)
	}
	if !in.Gone.IsZero() {
		b.WriteString("; stood " + (time.Duration(in.Exposed) * time.Microsecond).String())
	}
	if in.Exposure != nil && in.What != "restored" {
		b.WriteString("; " + exposed(in.Exposure))
	}
	if in.Error != "" {
		b.WriteString("; " + in.Error)
	}
	return b.String()
}

// exposed says what an incident let out, and who sent most of it.
func exposed(e *report.Exposure) string {
	if e.Packets == 0 {
		return "no packet leaked"
	}
	s := leaked(e.Totals)
	if e.Shared {
		s = "about " + s
	}
	if len(e.Senders) > 0 {
		s += "; most by " + sender(&e.Senders[0])
	}
	return s
}

// leaked says how much left, or would have.
func leaked(t report.Totals) string {
	s := fmt.Sprintf("%d packets (%d bytes)", t.Packets, t.Bytes)
	if t.Packets == 1 {
		s = fmt.Sprintf("1 packet (%d bytes)", t.Bytes)
	}
	switch t.Dropped {
	case 0:
		return s + " leaked"
	case t.Packets:
		return s + " tried to leak, all dropped"
	}
	return s + fmt.Sprintf(" tried to leak, %d dropped", t.Dropped)
}

// sender says who sent, as far as it is known.
func sender(s *report.Sender) string {
	switch {
	case s.Source != "":
		return s.Source + " by " + s.Ingress
	case s.PID != 0:
		return fmt.Sprintf("%s (process %d, user %d)", s.Process, s.PID, s.UID)
	case s.Process != "":
		return s.Process
	}
	return "the kernel, or a socket that is gone"
}

// printWitness says in two lines at most what packets did, and what would be
// done with them.
func printWitness(w io.Writer, st *report.Status) {
	x := &st.Witness
	switch {
	case x.Mode == report.Off:
		plain.Fprintf(w, "\npackets: not watched: %s\n", x.Reason)
		return
	case st.Leaks == nil:
		return
	case st.Leaks.Packets == 0:
		plain.Fprintf(w, "\npackets: none has leaked")
	default:
		plain.Fprintf(w, "\npackets: %s (\"culvert leaks\" tells who)", leaked(st.Leaks.Totals))
	}
	if blind := unseen(st.Sessions); len(blind) > 0 {
		plain.Fprintf(w, ", but those of %s are NOT WATCHED", strings.Join(blind, ", "))
	}
	plain.Fprintf(w, "; leaks are %s%s\n", leaksAre(x), conditions(x, len(st.Sessions)))
	if x.Error != "" {
		plain.Fprintf(w, "packets: NOT AS IT SHOULD BE: %v\n", errors.New(x.Error))
	}
	printDNS(w, st.Leaks)
	printList(w, "may go unseen", x.Unseen)
}

// printDNS says in a sentence each which name servers were asked outside the
// tunnel, and what to do about it.
func printDNS(w io.Writer, l *report.Leaks) {
	for i := range l.DNS {
		r := &l.DNS[i]
		what, became := r.Address.String(), "left outside "+r.Tunnel+" in clear"
		if r.Gateway {
			what += ", the gateway,"
		}
		if r.Dropped {
			became = "would leave outside " + r.Tunnel + " and was dropped"
		}
		plain.Fprintf(w, "DNS to %s %s: the VPN pushes no resolver; set one (\"resolvectl dns %s ADDRESS\"), or let this one pass by choice with --exclude %s/%d\n",
			what, became, r.Tunnel, r.Address, r.Address.BitLen())
	}
}

// exemptNames are the reasons that a packet was let pass, in words.
var exemptNames = map[string]string{
	"exempt-nd": "neighbour discovery", "exempt-dhcp": "DHCP", "exempt-broadcast": "broadcast on the link",
	"exempt-interface": "by an excluded interface", "exempt-fragment": "fragments to a server",
}

// printExempt says what was let pass by a rule.
func printExempt(w io.Writer, l *report.Leaks) {
	for _, x := range l.Exempt {
		name := exemptNames[x.Reason]
		if name == "" {
			name = x.Reason
		}
		plain.Fprintf(w, "let pass: %d packets (%d bytes) by %s: %s\n", x.Packets, x.Bytes, x.Interface, name)
	}
}

// unseen are the tunnels whose leaks are not even counted.
func unseen(sessions []report.Session) (tunnels []string) {
	for _, s := range sessions {
		if s.OnLeak == report.Off {
			tunnels = append(tunnels, s.Tunnel)
		}
	}
	return tunnels
}

// leaksAre says what is done with leaks, by what is in force.
func leaksAre(x *report.Witness) string {
	switch {
	case x.Mode == report.Drop:
		return "dropped"
	case x.Asked == report.Drop:
		return "counted, NOT DROPPED as was asked"
	}
	return "counted"
}

// conditions are what is out of the ordinary.
func conditions(x *report.Witness, sessions int) string {
	var s string
	add := func(is bool, format string, args ...any) {
		if is {
			s += fmt.Sprintf(format, args...)
		}
	}
	add(len(x.Holding) > 0, "; guarding while %s is away", strings.Join(x.Holding, ", "))
	add(!x.Until.IsZero(), "; until %s if nothing renews it", x.Until.Format(time.TimeOnly))
	add(x.Mode == report.Drop && x.Guard == "" && sessions > 0, "; not pinned, so only as long as the daemon lives")
	for _, i := range x.Interfaces {
		add(i.Displaced > 0, "; on %s another program was put before culvert's %d times, and culvert's first again (%s)", i.Interface, i.Displaced, i.By)
	}
	add(x.Unwatched > 0, "; %d interfaces not watched", x.Unwatched)
	add(x.Senders != "", "; senders known in part: %s", x.Senders)
	return s
}

// adder says who asked for a change, as far as it is known.
func adder(a enforce.Adder) string {
	switch {
	case a.Process != "":
		return fmt.Sprintf("%s (%d, %s)", a.Process, a.Port, a.Protocol)
	case a.Port != 0:
		return fmt.Sprintf("port %d (%s)", a.Port, a.Protocol)
	}
	return a.Protocol
}
