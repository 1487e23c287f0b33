package main

import (
	"context"

	"github.com/culvert-project/culvert/cmd/culvert/internal/witness"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/rtnl"
)

// wayOf asks the kernel which way a packet would go, and which rules it has.
func wayOf(ctx context.Context, sys system, name func(int) string, p witness.Packet) (witness.Way, error) {
	l, ok := sys.(linux)
	if !ok {
		return witness.Way{}, errWay
	}
	got, err := l.Lookup(ctx, rtnl.Query{Dst: p.Dst, TOS: p.TOS, Mark: p.Mark, UID: uint32(max(0, p.UID)), Link: p.Device})
	if err != nil {
		return witness.Way{}, err
	}
	way := witness.Way{Table: rtnl.TableName(got.Table), Refused: got.Err != nil}
	if !way.Refused {
		r := got.Route
		r.Type = got.Type
		way.Route = enforce.RouteText(&r, func(i uint32) string { return name(int(i)) }, protocolName)
		for hop := range r.Hops() {
			way.Links = append(way.Links, int(hop.Link))
		}
	}
	rules, err := l.Rules(ctx)
	if err != nil {
		return way, err
	}
	for _, r := range rules {
		if (r.Family == 6) == p.Dst.Is6() {
			way.Rules = append(way.Rules, witness.Rule{Priority: r.Priority, Table: ruleTable(r), Text: r.Text})
		}
	}
	return way, nil
}

func ruleTable(r rtnl.Rule) string {
	if r.Table == 0 {
		return ""
	}
	return rtnl.TableName(r.Table)
}
