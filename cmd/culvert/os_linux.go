package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/cmd/culvert/internal/witness"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/enforce/rtnl"
)

// here is the platform that this program was built for.
var here = &onLinux

type linux struct{ *rtnl.System }

func newSystem() (system, error) {
	sys, err := rtnl.New()
	if err != nil {
		return nil, err
	}
	return linux{sys}, nil
}

func binding() (enforce.Binding, error) { return rtnl.Binding() }

func protocolName(p uint8) string { return rtnl.ProtocolName(p) }

// permitted asks for the one capability that changing routes needs.
func permitted() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capabilities of this process: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return withCode(exitDenied, errors.New("changing routes needs root (CAP_NET_ADMIN); use sudo"))
	}
	return nil
}

func (l linux) lookup(ctx context.Context, q query) (answer, error) {
	got, err := l.Lookup(ctx, rtnl.Query{Dst: q.dst, Src: q.src, TOS: q.tos, Mark: q.mark, UID: q.uid, Link: q.device, Proto: q.proto, Port: q.port})
	if err != nil {
		return answer{}, err
	}
	a := answer{route: got.Route, onLink: got.OnLink, refused: got.Err}
	a.route.Type = got.Type
	if got.OnLink {
		return a, nil
	}
	table := ""
	if got.Err == nil {
		table = rtnl.TableName(got.Table)
		a.table = table
	}
	rules, err := l.rules(ctx, q.dst)
	if err != nil {
		return answer{}, err
	}
	p := witness.Packet{Dst: q.dst, Src: q.src, Proto: q.proto, Port: q.port, TOS: q.tos, Mark: q.mark, UID: int(q.uid), Device: q.device}
	a.rule, a.unless = witness.Deciding(rules, table, got.Route.Dst.Bits(), &p)
	return a, nil
}

// rules returns the policy rules of an address's family.
func (l linux) rules(ctx context.Context, dst netip.Addr) (out []witness.Rule, err error) {
	rules, err := l.Rules(ctx)
	var all []enforce.Rule
	for _, r := range rules {
		if (r.Family == 6) == dst.Is6() {
			all = append(all, r.Rule())
		}
	}
	before, _ := enforce.BeforeMain(all, int(plan.FamilyOf(netip.PrefixFrom(dst, dst.BitLen()))))
	for _, r := range all {
		out = append(out, witness.Rule{Table: r.Table, Text: r.Text, BeforeMain: slices.Contains(before, r)})
	}
	return out, err
}
