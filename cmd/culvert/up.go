package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
	"github.com/culvert-project/culvert/enforce"
)

func newUp(p *platform) *cobra.Command {
	var sess sessionFlags
	var socket string
	cmd := &cobra.Command{
		Use:   "up --tunnel INTERFACE --protect PREFIX[,PREFIX…]",
		Short: "Open a session, or change it",
		Long: p.help(`Open a session of the running daemon, or change the one on the same tunnel, and
return when it is enforcing or has failed. The same call again changes nothing.

The tunnel must exist; with --rearm the session waits for it, and again when it
has vanished. An interface that the network is reached by is no tunnel: IPsec
without an interface (policy-based) cannot be enforced by routes.

{{if .Witness}}--server-from says who sends the tunnel's own packets to the server:

  auto          what is certain by the tunnel's kind: for the kernel's WireGuard the
                kernel, for a tun interface this host, for others anybody
  host          this host, and nothing that it forwards
  uid:USER      sockets of that user
  mark:NUMBER   packets with that mark
  any           anybody

{{end}}` + exitHelp),
		Example: p.help(`  culvert up --tunnel {{.Tunnel}} --protect 10.0.0.0/8,2001:db8::/32
  culvert up --tunnel {{.Tunnel}} --protect 0.0.0.0/1,128.0.0.0/1 --server 198.51.100.7:1194/udp
  culvert up --tunnel {{.Tunnel}} --protect 10.0.0.0/8 --exclude 10.99.0.0/16 --exclude-interface {{.Other}}`),
		Args: noArgs,
	}
	cmd.Flags().SortFlags = false
	sess.register(p, cmd.Flags())
	cmd.Flags().BoolVar(&sess.text.Rearm, "rearm", false, "wait for the tunnel, and again each time it vanishes")
	socketFlag(p, cmd.Flags(), &socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := sess.text.Parse()
		if err != nil {
			return err
		}
		st, notes, err := openSession(cmd.Context(), socket, s)
		if err != nil {
			return err
		}
		err = sayOpened(cmd.OutOrStdout(), s, st)
		if st.OneFamily != "" {
			notes = append(notes, st.OneFamily)
		}
		for _, note := range notes {
			err = errors.Join(err, say(cmd.ErrOrStderr(), "culvert: %s\n", note))
		}
		return err
	}
	return cmd
}

// openSession opens a session of the daemon, and returns what to know of the
// daemon's settings besides.
func openSession(ctx context.Context, socket string, s enforce.Session) (st enforce.SessionStatus, notes []string, err error) {
	resp, err := control.Ask(ctx, socket, control.Request{Op: control.Open, Session: &s})
	if err != nil {
		return st, nil, err
	}
	if resp.Session == nil {
		return st, nil, errAnswer
	}
	if resp.Daemon != nil { // a daemon of an earlier version names itself elsewhere alone
		notes = resp.Daemon.Notes
	}
	return *resp.Session, notes, nil
}

// errAnswer: the daemon left out what was asked for.
var errAnswer = errors.New("the daemon's answer is not understood; use one version of culvert for daemon and command")

// sayOpened prints what became of a session; the error is nil when it is what
// was asked for.
func sayOpened(w io.Writer, s enforce.Session, st enforce.SessionStatus) error {
	switch {
	case st.State == enforce.Enforcing:
		return say(w, "%s: enforcing %s; %d conflicting routes removed\n", st.Tunnel, list(st.Protected), st.Removed)
	case st.State == enforce.Auditing:
		return say(w, "%s: auditing %s; nothing is changed\n", st.Tunnel, list(st.Protected))
	case st.State == enforce.Connecting && s.Rearm:
		return say(w, "%s: waiting for the interface\n", st.Tunnel)
	case st.Error != "":
		return fmt.Errorf("%s: %s: %s", st.Tunnel, st.State, st.Error)
	}
	return fmt.Errorf("%s: %s, not enforcing", st.Tunnel, st.State)
}

func say(w io.Writer, format string, args ...any) error {
	_, err := plain.Fprintf(w, format, args...)
	return err
}

// list says some prefixes in few words.
func list(p []netip.Prefix) string {
	switch len(p) {
	case 0:
		return "nothing"
	case 1:
		return p[0].String()
	case 2:
		return p[0].String() + ", " + p[1].String()
	}
	return fmt.Sprintf("%s, %s and %d more", p[0], p[1], len(p)-2)
}

func newDown(p *platform) *cobra.Command {
	var tunnel, socket string
	cmd := &cobra.Command{
		Use:   "down --tunnel INTERFACE",
		Short: "End a session and restore its routes",
		Long: `End the session on a tunnel: what had been removed comes back, culvert's own
routes go. It returns when that is done. Where a route cannot come back yet (its
interface is down, for example) the exit code is 1, and the daemon gives it back
later: "culvert status" lists it as waiting.

` + exitHelp,
		Example: p.help("  culvert down --tunnel {{.Tunnel}}"),
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&tunnel, "tunnel", "", "the tunnel's `interface`")
	socketFlag(p, cmd.Flags(), &socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := session.Device("--tunnel", tunnel); err != nil {
			return err
		}
		st, err := endSession(cmd.Context(), socket, control.Close, tunnel)
		if err != nil {
			return err
		}
		return sayClosed(cmd.OutOrStdout(), st)
	}
	return cmd
}

// endSession ends a session by hand (Close) or for the VPN (Leave).
func endSession(ctx context.Context, socket string, op control.Op, tunnel string) (enforce.SessionStatus, error) {
	resp, err := control.Ask(ctx, socket, control.Request{Op: op, Tunnel: tunnel})
	switch {
	case errors.Is(err, enforce.ErrNoSession):
		return enforce.SessionStatus{}, fmt.Errorf("%s: %w; \"culvert status\" lists the open ones", tunnel, enforce.ErrNoSession)
	case err != nil:
		return enforce.SessionStatus{}, err
	case resp.Session == nil:
		return enforce.SessionStatus{}, errAnswer
	}
	return *resp.Session, nil
}

func sayClosed(w io.Writer, st enforce.SessionStatus) error {
	if st.State == enforce.Restoring {
		return fmt.Errorf("%s: %s; %s given back; %s; the daemon gives them back when they can be, \"culvert status\" lists them",
			st.Tunnel, st.State, count(int(st.Restored), "route"), st.Error)
	}
	if st.Error != "" {
		return fmt.Errorf("%s: %s: %s", st.Tunnel, st.State, st.Error)
	}
	return say(w, "%s: %s; %s given back\n", st.Tunnel, st.State, count(int(st.Restored), "route"))
}
