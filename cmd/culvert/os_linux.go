package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/enforce"
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
	got, err := l.Lookup(ctx, rtnl.Query{Dst: q.dst, TOS: q.tos, Mark: q.mark, UID: q.uid, Link: q.device})
	if err != nil {
		return answer{}, err
	}
	a := answer{route: got.Route, table: rtnl.TableName(got.Table), refused: got.Err}
	a.route.Type = got.Type
	rules, err := l.Rules(ctx)
	if err != nil {
		return answer{}, err
	}
	family := uint8(4)
	if q.dst.Is6() {
		family = 6
	}
	for _, r := range rules {
		if r.Family == family && r.Table == got.Table {
			a.rules = append(a.rules, r.Text)
		}
	}
	return a, nil
}
