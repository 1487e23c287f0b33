package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
)

const statusLong = `Show every session of the running daemon and the last incidents. The exit code
is 0 when there is a session and every one is enforcing{{if .Witness}}, and packets are counted
or dropped as asked{{end}}; 1 when not, 3 when no daemon answers.

--wait asks again until every session is enforcing or the time is over.

--json prints one document; its fields stay, others may be added:

  version               1
  sessions[]
    tunnel              interface name, as the session was opened with
    interface           its name now; absent when it was not renamed
    state               connecting, enforcing, reconnecting, auditing or failed; a
                        session that has ended is not listed (see waiting)
    error               why it failed, or that another kind of interface has the
                        name of a tunnel that is away; absent otherwise
    protected[]         prefixes that must leave through the tunnel
    excluded[]          prefixes that bypass it on purpose
    removed             conflicting routes deleted, repeats included
    readded             routes of the VPN and of culvert put (back)
    restored            held routes given back
    withdrawn           routes of culvert's own taken away again, and others' taken
                        out for a moment so that routes come back in their order
    held[]              removed routes that will come back: route, since
    contested[]         routes added again and again: route, times, by
    one_family          all of one family is protected and the other leaves by a
                        default route outside, in words; absent when not
{{if .Witness}}    rejected[]          prefixes of that family that --other-family block rejects
{{end}}    unenforceable[]     what routing cannot protect, in words
    notes[]             what is as it should be and good to know: this host's own
                        addresses among the protected ones, what may go to a gateway
{{if .Witness}}    leaks               what left outside the tunnel for its prefixes: packets,
                        bytes, dropped, by[] (as below)
    on_leak             what is done with those packets now: count, drop, or off
                        (not even counted)
{{end}}  waiting[]             removed routes that no session keeps out any more, but that
                        cannot come back yet: route, since, why; absent when none
  totals                removed, readded, restored, withdrawn since the start, for
                        all sessions, ended ones included
  incidents[]           the last ones, oldest first
    id, tunnel          number since start; tunnel of the session
    what                removed, readded, restored, reported, failed; ended: a
                        session that a restart could not reopen
    route, reason       in words
    by                  protocol, port (netlink, usually the process id), process
    seen, gone          RFC 3339; gone is absent while it stands
    exposed_us          microseconds from seen to gone
    path                edge (answered on arrival) or level (found in the table)
    count               how many incidents this one stands for, where they came too
                        fast; seen is the first, gone the last; absent for one
    error               absent when there was none
{{if .Witness}}    packets, bytes,     what left outside the tunnel because of it, dropped ones
    dropped             included; absent when it was not measured, 0 is measured
    shared              true: divided among incidents of one moment by samples
    senders[]           process, pid, uid, cgroup, packets, bytes, dropped
  leaks                 since the daemon (or a guard that it adopted) began;
                        absent when there is no witness
    packets, bytes      on the wire; dropped packets are among them
    dropped             packets that were stopped
    interfaces[]        interface, packets, bytes, dropped, by[]
    dns[]               name servers asked outside the tunnel lately: address,
                        tunnel, gateway, dropped, last
    exempt[]            what a rule let pass: interface, reason, packets, bytes
    by[]                who, why and where, most packets first:
      process, pid, uid, cgroup, origin (socket, seed, task, packet, forwarded,
      unowned); ingress and source when it was forwarded
      tunnel, prefix    what should have carried it
      to, interface     latest destination; by what it left
      mechanism, why    bound, packet, forwarded, rule, vrf, route, in-flight,
                        no-tunnel, server, gateway, early, unknown; the same in words
      incident          the incident that it belongs to; absent for a finding
      packets, bytes, dropped, first, last
  witness
    mode                off, count, drop: what is done now
    asked               what was asked for, where that is another
    reason, error       why it is off; why what is in force is not what should be
    guard, until        folder of what outlives the daemon; when drops end
    adopted, holding[]  a guard was taken over; tunnels that are away under one
    senders, gap        what naming senders lacks; why new interfaces have a gap
    unseen[]            what on this host may send or change packets unseen
    suppressed, lost    samples held back or lost; counts are exact all the same
    interfaces[]        interface, mode, gap_us, error; displaced, by: how often
                        another TCX program was before culvert's, and which
{{end}}
` + exitHelp

func newStatus(p *platform) *cobra.Command {
	var socket string
	var asJSON bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether the sessions are enforced",
		Long:  p.help(statusLong),
		Example: `  culvert status
  culvert status --json | jq '.sessions[] | .tunnel, .state'
  culvert status --wait 10s && echo protected`,
		Args: noArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait so long for every session to be enforcing, for example `10s`")
	socketFlag(p, cmd.Flags(), &socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if wait < 0 {
			return usagef("--wait: %s is negative", wait)
		}
		st, err := awaitStatus(cmd.Context(), socket, wait)
		if err != nil {
			return err
		}
		return showStatus(cmd.OutOrStdout(), st, asJSON)
	}
	return cmd
}

// pollEvery is how often a waiting status asks again.
const pollEvery = 100 * time.Millisecond

// awaitStatus asks until every session is enforcing or the time is over, and
// returns the last answer.
func awaitStatus(ctx context.Context, socket string, wait time.Duration) (report.Status, error) {
	deadline := time.Now().Add(wait)
	for {
		st, err := askStatus(ctx, socket)
		final := errors.Is(err, control.ErrDenied) || (err == nil && right(st))
		if final || !time.Now().Add(pollEvery).Before(deadline) {
			return st, err
		}
		time.Sleep(pollEvery)
	}
}

func askStatus(ctx context.Context, socket string) (report.Status, error) {
	resp, err := control.Ask(ctx, socket, control.Request{Op: control.Status})
	if err != nil {
		return report.Status{}, err
	}
	if resp.Status == nil {
		return report.Status{}, errAnswer
	}
	return *resp.Status, nil
}

// enforced reports whether there is a session and every one is enforcing.
func enforced(st report.Status) bool {
	for _, s := range st.Sessions {
		if s.State != enforce.Enforcing {
			return false
		}
	}
	return len(st.Sessions) > 0
}

// right reports whether all is as it was asked for, the witness too.
func right(st report.Status) bool { return enforced(st) && st.Witness.Error == "" }

func showStatus(w io.Writer, st report.Status, asJSON bool) error {
	var err error
	if asJSON {
		err = writeStatusJSON(w, st)
	} else {
		p := &printer{w: w}
		printStatus(p, st)
		err = p.err
	}
	if err == nil && !right(st) {
		return errQuiet
	}
	return err
}

// statusDoc is the document that --json prints.
type statusDoc struct {
	Version int `json:"version"`
	report.Status
}

func writeStatusJSON(w io.Writer, st report.Status) error {
	doc := statusDoc{Version: 1, Status: st}
	doc.Sessions = notNil(doc.Sessions)
	doc.Incidents = notNil(doc.Incidents)
	doc.Witness.Interfaces = notNil(doc.Witness.Interfaces)
	fillLeaks(doc.Leaks)
	for i := range doc.Sessions {
		s := &doc.Sessions[i]
		s.Protected, s.Excluded = notNil(s.Protected), notNil(s.Excluded)
		s.Held, s.Contested = notNil(s.Held), notNil(s.Contested)
		s.Unenforceable, s.Notes = notNil(s.Unenforceable), notNil(s.Notes)
		fillLeaks(s.Leaks)
	}
	return writeJSON(w, doc)
}

func fillLeaks(l *report.Leaks) {
	if l != nil {
		l.By = notNil(l.By)
	}
}

// notNil makes an absent list an empty one: readers should not have to care.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func writeJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
