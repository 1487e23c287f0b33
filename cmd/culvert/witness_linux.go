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
	q := rtnl.Query{Dst: p.Dst, TOS: p.TOS, Mark: p.Mark, UID: uint32(max(0, p.UID)), Link: p.Device, Proto: p.Proto, Port: p.Port}
	got, err := l.Lookup(ctx, q)
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
	way.Rules, err = l.rules(ctx, p.Dst)
	return way, err
}
