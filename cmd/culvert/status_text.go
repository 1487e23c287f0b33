package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/culvert-project/culvert/enforce"
)

// How many lines of a kind fit on a person's one screen.
const (
	shownDetails   = 4
	shownIncidents = 8
)

// printStatus writes the table, what is out of the ordinary, and the last
// incidents.
func printStatus(w io.Writer, st enforce.Status) {
	if len(st.Sessions) == 0 {
		fmt.Fprintln(w, "nothing is enforced: no session is open")
	} else {
		printSessions(w, st.Sessions)
	}
	for i := range st.Sessions {
		printDetails(w, &st.Sessions[i])
	}
	printIncidents(w, st.Incidents)
}

func printSessions(w io.Writer, sessions []enforce.SessionStatus) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TUNNEL\tSTATE\tREMOVED\tREADDED\tRESTORED\tHELD\tPROTECTED")
	for _, s := range sessions {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", s.Tunnel, s.State, s.Removed, s.Readded, s.Restored, len(s.Held), list(s.Protected))
	}
	_ = t.Flush()
}

func printDetails(w io.Writer, s *enforce.SessionStatus) {
	if s.Error != "" {
		fmt.Fprintf(w, "\n%s: %s\n", s.Tunnel, s.Error)
	}
	var held, contested []string
	for _, h := range s.Held {
		held = append(held, h.Route)
	}
	for _, c := range s.Contested {
		contested = append(contested, fmt.Sprintf("%s (%s times, by %s)", c.Route, strconv.FormatUint(c.Times, 10), adder(c.By)))
	}
	printList(w, s.Tunnel+": held, will come back", held)
	printList(w, s.Tunnel+": added again and again", contested)
	printList(w, s.Tunnel+": cannot be enforced by routes", s.Unenforceable)
}

// printList writes a heading and the first lines under it; nothing for none.
func printList(w io.Writer, heading string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s:\n", heading)
	for i, line := range lines {
		if i == shownDetails {
			fmt.Fprintf(w, "  and %d more\n", len(lines)-i)
			return
		}
		fmt.Fprintln(w, "  "+line)
	}
}

func printIncidents(w io.Writer, all []enforce.Incident) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(w, "\nlast incidents:")
	for _, in := range all[max(0, len(all)-shownIncidents):] {
		fmt.Fprintln(w, "  "+incidentLine(in))
	}
}

func incidentLine(in enforce.Incident) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s %s %s", in.Seen.Format(time.TimeOnly), in.Tunnel, in.What, in.Route)
	if in.Reason != "" {
		b.WriteString(": " + in.Reason)
	}
	if by := adder(in.By); by != "" {
		b.WriteString("; by " + by)
	}
	if !in.Gone.IsZero() {
		b.WriteString("; stood " + (time.Duration(in.Exposed) * time.Microsecond).String())
	}
	if in.Error != "" {
		b.WriteString("; " + in.Error)
	}
	return b.String()
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
