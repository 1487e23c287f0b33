package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/openvpn"
	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

func newHook(p *platform) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hook",
		Short: "Called by VPN programs",
		Long: `Commands for the scripts of VPN programs. VPNs that are not among them call
"culvert up" and "culvert down"; wg-quick does by PostUp and PreDown:

  PostUp  = culvert up --tunnel %i --protect 10.0.0.0/8
  PreDown = culvert down --tunnel %i`,
		Example: "  culvert hook openvpn --help",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("name the VPN program: \"culvert hook openvpn\"")
		},
	}
	cmd.AddCommand(newHookOpenVPN(p))
	return cmd
}

const hookLong = `Called by OpenVPN as its up, route-up, route-pre-down and down script. It reads
OpenVPN's environment, opens or changes the session when the tunnel comes up,
and ends it when OpenVPN ends. A restart (SIGUSR1, SIGHUP, ping-restart, a lost
connection) is no end: the session stays, and with --on-loss guard nothing that it
protects leaves until the tunnel is back. In OpenVPN's configuration:

  script-security 2
  up             {{.Call "hook openvpn"}}
  route-up       {{.Call "hook openvpn"}}
  route-pre-down {{.Call "hook openvpn"}}
  down           {{.Call "hook openvpn"}}

Protected: the routes to the VPN gateway, the tunnel's own subnet unless another
session names it, and with redirect-gateway 0.0.0.0/1 and 128.0.0.0/1 (OpenVPN tells
from route-up on).
Excluded: the IPv4 routes to another gateway (net_gateway), unless their prefix
is protected too. The server can push such routes; where it is not trusted that
far, give --no-bypass. The servers and their transports are taken from trusted_ip,
remote and proto, all of them, so that OpenVPN can go on to the next; those that
are names are resolved by up, for two seconds at most.

When the session cannot be opened (the daemon is away, for example), it warns
and exits with 0, so that the VPN comes up; with --require it exits with 1 and
OpenVPN gives up. Only up can hold OpenVPN back: give --require there.
OpenVPN's arguments are taken and not used.

` + exitHelp

// hookTimeout bounds a hook from its start to its end: OpenVPN waits for it.
const hookTimeout = 5 * time.Second

func newHookOpenVPN(p *platform) *cobra.Command {
	var socket, other string
	var from []string
	var require, noBypass bool
	cmd := &cobra.Command{
		Use:   "openvpn [ARGUMENTS…]",
		Short: "OpenVPN's up, route-up, route-pre-down and down script",
		Long:  p.help(hookLong),
		Example: p.help(`  up   {{.Call "hook openvpn --require"}}
  down {{.Call "hook openvpn"}}`),
		Args: cobra.ArbitraryArgs,
	}
	cmd.Flags().BoolVar(&require, "require", false, "fail when the session is not enforced")
	cmd.Flags().BoolVar(&noBypass, "no-bypass", false, "protect net_gateway routes too: the server can push them")
	cmd.Flags().StringVar(&other, "other-family", "", "`allow|block` the family that OpenVPN leaves out, when it redirects all of the other (default allow)")
	cmd.Flags().StringSliceVar(&from, "server-from", nil, "`senders` of OpenVPN's own packets: auto, host, uid:USER, mark:NUMBER or any; what others send to the server is a leak (default auto)")
	p.dropFlags(cmd.Flags())
	socketFlag(p, cmd.Flags(), &socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := session.OtherFamilyWord("--other-family", other); err != nil {
			return err
		}
		senders, err := session.Senders("--server-from", from)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), hookTimeout)
		defer cancel()
		call, err := openvpn.Read(os.Getenv)
		if err != nil {
			return withCode(exitUsage, err)
		}
		if noBypass {
			call.NoBypass()
		}
		h := hook{call: call, other: enforce.OtherFamily(other), senders: senders, socket: socket, resolve: net.DefaultResolver.LookupNetIP, out: cmd.OutOrStdout(), warn: cmd.ErrOrStderr()}
		err = h.run(ctx)
		switch {
		case err == nil:
			return nil
		case require:
			return withCode(exitWrong, err)
		}
		return say(h.warn, "culvert: warning: %s: %s: %v\n", call.Script, call.Device, err)
	}
	return cmd
}

// hook carries out one script call.
type hook struct {
	call      openvpn.Call
	other     enforce.OtherFamily
	senders   []string
	socket    string
	resolve   func(ctx context.Context, network, name string) ([]netip.Addr, error)
	out, warn io.Writer
}

func (h *hook) run(ctx context.Context) error {
	switch h.call.Event {
	case openvpn.Up:
		return h.up(ctx)
	case openvpn.Down:
		return h.down(ctx)
	}
	if h.call.Signal != "" {
		return say(h.out, "%s: OpenVPN restarts (%.40q); the session stays\n", h.call.Device, h.call.Signal)
	}
	return nil
}

// resolveTimeout bounds the resolving of all servers that are names.
const resolveTimeout = 2 * time.Second

// findServers resolves the servers that OpenVPN knows by name, in up: later the
// tunnel may have taken the resolver, and what up found is asked of the daemon.
func (h *hook) findServers(ctx context.Context) {
	names := h.call.Names()
	if len(names) == 0 {
		return
	}
	if h.call.Script != "up" {
		h.knownServers(ctx)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	type found struct {
		addrs []netip.Addr
		err   error
	}
	answers := make([]found, len(names))
	var wait sync.WaitGroup
	for i, name := range names {
		wait.Go(func() { answers[i].addrs, answers[i].err = h.resolve(ctx, "ip", name) })
	}
	wait.Wait()
	for i, name := range names {
		if err := answers[i].err; err != nil {
			h.call.Unresolved(name, err)
			continue
		}
		h.call.Resolved(name, answers[i].addrs)
	}
}

// knownServers takes the servers of the open session.
func (h *hook) knownServers(ctx context.Context) {
	resp, err := control.Ask(ctx, h.socket, control.Request{Op: control.Policy})
	if err != nil {
		return // opening says why
	}
	for _, s := range resp.Policy {
		if s.Tunnel == h.call.Device {
			h.call.Known(s.Servers)
		}
	}
}

func (h *hook) up(ctx context.Context) error {
	if h.call.Script == "route-up" {
		h.dropStale(ctx)
	}
	h.findServers(ctx)
	s, err := h.call.Session()
	h.sayWarnings()
	if err != nil {
		return err
	}
	s.Hook, s.OtherFamily, s.ServerFrom = true, h.other, h.senders
	st, _, err := openSession(ctx, h.socket, s)
	if err != nil {
		return err
	}
	if st.OneFamily != "" {
		_ = say(h.warn, "culvert: warning: %s: %s\n", st.Tunnel, st.OneFamily)
	}
	if st.State != enforce.Enforcing && st.Error == "" {
		return fmt.Errorf("%s, not enforcing", st.State)
	}
	return sayOpened(h.out, s, st)
}

// down ends the session; it is no error when there is none.
func (h *hook) down(ctx context.Context) error {
	st, err := endSession(ctx, h.socket, control.Leave, h.call.Device)
	if errors.Is(err, enforce.ErrNoSession) {
		return nil
	}
	if err != nil {
		return err
	}
	return sayClosed(h.out, st)
}

func (h *hook) sayWarnings() {
	for _, w := range h.call.Warnings {
		_ = say(h.warn, "culvert: warning: %s\n", w)
	}
}

// dropStale tells left-overs of an earlier connection by what OpenVPN has put
// into the table. When the table cannot be read they stay: rather too much is
// protected than too little.
func (h *hook) dropStale(ctx context.Context) {
	if len(h.call.Routes) == 0 {
		return
	}
	sys, err := newSystem()
	if err != nil {
		return
	}
	defer sys.Close() //nolint:errcheck // only read
	facts, err := sys.Facts(ctx)
	if err != nil {
		return
	}
	for _, l := range facts.Links {
		if l.Name == h.call.Device {
			h.markStanding(ctx, sys, l.Index)
		}
	}
}

func (h *hook) markStanding(ctx context.Context, sys enforce.System, tunnel uint32) {
	byPrefix := map[netip.Prefix][]int{}
	for i, r := range h.call.Routes {
		byPrefix[r.Prefix] = append(byPrefix[r.Prefix], i)
	}
	for r, err := range sys.Table(ctx) {
		if err != nil {
			return
		}
		for _, i := range byPrefix[r.Dst] {
			mark(&h.call.Routes[i], &r, tunnel)
		}
	}
	h.call.DropStale()
}

// mark notes whether r is what OpenVPN would have put for a route. One of
// culvert's own in its place says nothing: OpenVPN may have been refused.
func mark(want *openvpn.Route, r *plan.Route, tunnel uint32) {
	inTunnel := r.Hop.Link == tunnel
	switch {
	case r.Origin == plan.Own:
		want.Rivalled = true
	case want.Excluded && !inTunnel && r.Hop.Via == want.Gateway, !want.Excluded && inTunnel:
		want.Standing = true
	default:
		want.Rivalled = true
	}
}
