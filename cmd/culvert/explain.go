package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

const explainLong = `Say what is meant to become of packets to an address, what the kernel would do
with them now, which {{if .Rules}}rule and route decide{{else}}route decides{{end}} that, and whether it is right.

The policy is the running daemon's. With --tunnel and --protect it is the one
that the flags describe, and no daemon is asked.

The exit code is 0 when it is right, 1 when it is not. An address that nothing
protects is always right.

` + exitHelp

func newExplain(p *platform) *cobra.Command {
	var sess sessionFlags
	var socket string
	var q query
	cmd := &cobra.Command{
		Use:   "explain ADDRESS",
		Short: "Say where packets to an address go, and whether that is right",
		Long:  p.help(explainLong),
		Example: p.help(`  culvert explain 172.31.0.10
{{if .Rules}}  culvert explain 10.1.2.3 --tos 0x10
  culvert explain 2001:db8::1 --mark 0x100
{{end}}  culvert explain 10.1.2.3 --tunnel {{.Tunnel}} --protect 10.0.0.0/8`),
		Args: oneAddress(&q.dst),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Uint8Var(&q.tos, "tos", 0, "type of service `byte` of the packet")
	f.Uint32Var(&q.mark, "mark", 0, "firewall `mark` of the packet")
	f.Uint32Var(&q.uid, "uid", 0, "user `id` of the sender")
	f.StringVar(&q.device, "device", "", "`interface` that the sender's socket is bound to")
	sess.register(p, f)
	socketFlag(p, f, &socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		given, err := policyOf(cmd, &sess)
		if err != nil {
			return err
		}
		sessions, err := sessionsOf(cmd.Context(), socket, given)
		if err != nil {
			return err
		}
		return explain(cmd.Context(), cmd.OutOrStdout(), sessions, q)
	}
	return cmd
}

func oneAddress(dst *netip.Addr) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usagef("%s takes one address; see \"%s --help\"", cmd.CommandPath(), cmd.CommandPath())
		}
		a, err := netip.ParseAddr(args[0])
		if err != nil || a.Zone() != "" {
			return &session.Error{Input: args[0], Text: "is not an address; write one like 10.1.2.3 or 2001:db8::1"}
		}
		*dst = a.Unmap()
		return nil
	}
}

// sessionsOf returns the session given by flags, or else the daemon's.
func sessionsOf(ctx context.Context, socket string, given *enforce.Session) ([]enforce.Session, error) {
	if given != nil {
		return []enforce.Session{*given}, nil
	}
	resp, err := control.Ask(ctx, socket, control.Request{Op: control.Policy})
	if err != nil {
		return nil, fmt.Errorf("%w; or describe the policy with --tunnel and --protect", err)
	}
	return resp.Policy, nil
}

// explain asks the system and prints the explanation; the error is errQuiet
// when the system is wrong.
func explain(ctx context.Context, w io.Writer, sessions []enforce.Session, q query) error {
	sys, err := newSystem()
	if err != nil {
		return err
	}
	defer sys.Close() //nolint:errcheck // only read
	facts, err := sys.Facts(ctx)
	if err != nil {
		return err
	}
	names := map[uint32]string{}
	for _, l := range facts.Links {
		names[l.Index] = l.Name
	}
	a, err := sys.lookup(ctx, q)
	if err != nil {
		return err
	}
	e := explanation{dst: q.dst, answer: a, links: facts.Links, names: names}
	e.judge(sessions)
	p := &printer{w: w}
	e.print(p)
	return errors.Join(p.err, e.err())
}

// explanation joins what policy and system say of one address.
type explanation struct {
	dst    netip.Addr
	answer answer
	links  []plan.Link
	names  map[uint32]string

	policy  string // what should be
	right   bool
	verdict string
}

func (e *explanation) err() error {
	if e.right {
		return nil
	}
	return errQuiet
}

// judge compares the system's answer with the policy of the sessions.
func (e *explanation) judge(sessions []enforce.Session) {
	p := e.build(sessions)
	class, entry := p.Lookup(e.dst)
	e.right = true
	switch class {
	case plan.Ignored:
		e.policy, e.verdict = "inside a range that is never touched", "right: nothing is asked of it"
	case plan.Unlisted:
		e.policy, e.verdict = "no session protects it", "right: nothing is asked of it"
	case plan.Excluded:
		e.policy, e.verdict = "excluded by "+entry.Prefix.String(), "right: it may bypass the tunnel"
	case plan.Protected:
		tunnel := sessions[entry.Session].Tunnel
		e.policy = "protected by " + entry.Prefix.String() + ": must leave through " + tunnel
		e.right, e.verdict = e.through(entry.Tunnel, tunnel)
	}
}

// build makes the policy of the sessions. A tunnel that is not there gets an
// index that no interface has.
func (e *explanation) build(sessions []enforce.Session) *plan.Policy {
	var spec plan.Spec
	for i, s := range sessions {
		ps := plan.Session{Tunnel: ^uint32(i), Protect: s.Protect, Exclude: s.Exclude, OtherTable: s.OtherTable}
		for index, name := range e.names {
			if name == s.Tunnel {
				ps.Tunnel = index
			}
		}
		for _, srv := range s.Servers {
			ps.Servers = append(ps.Servers, srv.Addr.Addr())
		}
		spec.Sessions = append(spec.Sessions, ps)
	}
	p, _ := plan.Build(spec) // what is wrong with them was found when they were opened
	return p
}

// through says whether the answer leads through the tunnel and nowhere else.
func (e *explanation) through(index uint32, tunnel string) (bool, string) {
	r := &e.answer.route
	switch {
	case e.answer.refused != nil:
		return false, "wrong: it reaches nothing, the tunnel included (" + e.answer.refused.Error() + ")"
	case r.Type == plan.Local && e.owns(index):
		return true, "right: it is this host's own address on the tunnel"
	case r.Type == plan.Local:
		return false, "wrong: it is this host's own address, packets to it stay here; routes cannot change that"
	case r.Type != plan.Unicast:
		return false, "wrong: the route cuts it off (" + r.Type.String() + ")"
	}
	var outside []string
	for hop := range r.Hops() {
		if hop.Link != index {
			outside = append(outside, e.name(hop.Link))
		}
	}
	switch {
	case len(outside) == 0:
		return true, "right: it leaves through " + tunnel
	case slices.Contains(outside, ""):
		return false, "wrong: it leaves by an interface that is not known"
	}
	return false, "wrong: it leaves by " + strings.Join(outside, ", ")
}

// owns reports whether the address is one of the interface's own.
func (e *explanation) owns(index uint32) bool {
	return slices.ContainsFunc(e.links, func(l plan.Link) bool {
		return l.Index == index && slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == e.dst })
	})
}

func (e *explanation) name(index uint32) string { return e.names[index] }

func (e *explanation) print(w io.Writer) {
	fmt.Fprintf(w, "address  %s\n", e.dst)
	fmt.Fprintf(w, "policy   %s\n", e.policy)
	if e.answer.refused != nil {
		fmt.Fprintf(w, "kernel   no way: %v\n", e.answer.refused)
	} else {
		fmt.Fprintf(w, "kernel   %s\n", enforce.RouteText(&e.answer.route, e.name, protocolName))
		fmt.Fprintf(w, "table    %s\n", e.answer.table)
	}
	for i, rule := range e.answer.rules {
		label := "rule     "
		if i > 0 {
			label = "or rule  "
		}
		fmt.Fprintln(w, label+rule)
	}
	fmt.Fprintf(w, "verdict  %s\n", e.verdict)
}
