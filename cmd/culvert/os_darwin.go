package main

import (
	"context"
	"errors"
	"os"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/pfroute"
)

// here is the platform that this program was built for.
var here = &onDarwin

type darwin struct{ *pfroute.System }

func newSystem() (system, error) {
	sys, err := pfroute.New()
	if err != nil {
		return nil, err
	}
	return darwin{sys}, nil
}

func binding() (enforce.Binding, error) {
	sys, err := pfroute.New()
	if err != nil {
		return enforce.Binding{}, err
	}
	b, err := sys.Binding()
	return b, errors.Join(err, sys.Close())
}

func protocolName(p uint8) string { return pfroute.ProtocolName(p) }

// permitted asks for root, which changing routes needs.
func permitted() error {
	if os.Geteuid() != 0 {
		return withCode(exitDenied, errors.New("changing routes needs root; use sudo"))
	}
	return nil
}

func (d darwin) lookup(ctx context.Context, q query) (answer, error) { return lookupIn(ctx, d, q) }
