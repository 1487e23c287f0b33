package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"

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

The question is about a packet of this host. Without --proto it is about an
ordinary packet; to a VPN server it is about the tunnel's own transport, and
with --proto about just that packet, as the witness would judge it.

The exit code is 0 when it is right, 1 when it is not. An address that nothing
protects is always right. What cannot be asked is an error, never an answer.

` + exitHelp

func newExplain(p *platform) *cobra.Command {
	var sess sessionFlags
	var socket string
	var q query
	var from, proto string
	cmd := &cobra.Command{
		Use:   "explain ADDRESS",
		Short: "Say where packets to an address go, and whether that is right",
		Long:  p.help(explainLong),
		Example: p.help(`  culvert explain 172.31.0.10
{{if .Rules}}  culvert explain 10.1.2.3 --tos 0x10
  culvert explain 2001:db8::1 --mark 0x100
  culvert explain 10.1.2.3 --from 192.168.1.20
  culvert explain 198.51.100.7 --proto udp --port 1194
{{end}}  culvert explain 10.1.2.3 --tunnel {{.Tunnel}} --protect 10.0.0.0/8`),
		Args: oneAddress(&q.dst),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&from, "from", "", "source `address` of the packet, one of this host's")
	f.StringVar(&proto, "proto", "", "transport `protocol` of the packet: "+protocolNames+", or a number")
	f.Uint16Var(&q.port, "port", 0, "`port` that the packet goes to")
	f.Uint8Var(&q.tos, "tos", 0, "type of service `byte` of the packet")
	f.Uint32Var(&q.mark, "mark", 0, "firewall `mark` of the packet")
	f.Uint32Var(&q.uid, "uid", 0, "user `id` of the sender")
	f.StringVar(&q.device, "device", "", "`interface` that the sender's socket is bound to")
	sess.register(p, f)
	socketFlag(p, f, &socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		given, err := policyOf(cmd, &sess)
		if err == nil {
			err = q.complete(from, proto)
		}
		if err != nil {
			return err
		}
		asked, err := policyFor(cmd.Context(), socket, given)
		if err != nil {
			return err
		}
		return explain(cmd.Context(), cmd.OutOrStdout(), asked, q)
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

// protocolNames are the keys of protocols, the usual ones first.
const protocolNames = "udp, tcp, sctp, icmp, icmpv6, esp, ah, gre, ipip, sit, l2tp"

// protocols are the names that --proto takes.
var protocols = map[string]uint8{
	"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "sit": 41, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "l2tp": 115, "sctp": 132,
}

// complete reads the flags that are words.
func (q *query) complete(from, proto string) error {
	if proto != "" {
		number, ok := protocols[proto]
		if n, err := strconv.ParseUint(proto, 10, 8); err == nil && n != 0 {
			number, ok = uint8(n), true
		}
		if !ok {
			return &session.Error{Where: "--proto", Input: proto, Text: "is not a protocol; write one of " + protocolNames + ", or a number"}
		}
		q.proto = number
	}
	if q.port != 0 && q.proto != protocols["udp"] && q.proto != protocols["tcp"] && q.proto != protocols["sctp"] {
		return usagef("--port needs --proto udp, tcp or sctp")
	}
	if from == "" {
		return nil
	}
	src, err := netip.ParseAddr(from)
	if err != nil || src.Zone() != "" {
		return &session.Error{Where: "--from", Input: from, Text: "is not an address; write one like 192.168.1.20"}
	}
	if q.src = src.Unmap(); q.src.Is4() != q.dst.Is4() {
		return usagef("--from %s and %s are of two families", q.src, q.dst)
	}
	return nil
}

// asked is the policy that is asked about.
type asked struct {
	sessions []enforce.Session
	gateways []netip.Prefix
}

// policyFor returns the session given by flags, or else the daemon's.
func policyFor(ctx context.Context, socket string, given *enforce.Session) (asked, error) {
	if given != nil {
		return asked{sessions: []enforce.Session{*given}}, nil
	}
	var resp control.Response
	err := servesHere(ctx, socket)
	if err == nil {
		resp, err = control.Ask(ctx, socket, control.Request{Op: control.Policy})
	}
	if err != nil {
		return asked{}, fmt.Errorf("%w; or describe the policy with --tunnel and --protect", err)
	}
	return asked{resp.Policy, resp.Gateways}, nil
}

// explain asks the system and prints the explanation; the error is errQuiet
// when the system is wrong.
func explain(ctx context.Context, w io.Writer, policy asked, q query) error {
	sys, err := newSystem()
	if err != nil {
		return err
	}
	defer sys.Close() //nolint:errcheck // only read
	facts, err := sys.Facts(ctx)
	if err != nil {
		return err
	}
	if _, own := ownerOf(facts.Links, q.src); q.src.IsValid() && !own {
		return usagef("--from %s: it is no address of this host; only its own packets can be asked about", q.src)
	}
	names := map[uint32]string{}
	for _, l := range facts.Links {
		names[l.Index] = l.Name
	}
	if q.device != "" && !slices.ContainsFunc(facts.Links, func(l plan.Link) bool { return l.Name == q.device }) {
		return &session.Error{Where: "--device", Input: q.device, Text: "is no interface of this host; \"ip link\" lists them"}
	}
	a, err := sys.lookup(ctx, q)
	if err != nil {
		return err
	}
	e := explanation{query: q, answer: a, links: facts.Links, names: names}
	e.judge(policy)
	p := &printer{w: w}
	e.print(p)
	return errors.Join(p.err, e.err())
}
