package main

import (
	"context"
	"errors"

	"golang.org/x/sys/windows"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/winroute"
)

// here is the platform that this program was built for.
var here = &onWindows

type windowsSystem struct{ *winroute.System }

func newSystem() (system, error) {
	sys, err := winroute.New()
	if err != nil {
		return nil, err
	}
	return windowsSystem{sys}, nil
}

func binding() (enforce.Binding, error) {
	sys, err := winroute.New()
	if err != nil {
		return enforce.Binding{}, err
	}
	b, err := sys.Binding()
	return b, errors.Join(err, sys.Close())
}

func protocolName(p uint8) string { return winroute.ProtocolName(p) }

// permitted asks for an elevated administrator, which changing routes needs.
func permitted() error {
	if !windows.GetCurrentProcessToken().IsElevated() {
		return withCode(exitDenied, errors.New("changing routes needs an administrator; use an elevated prompt"))
	}
	return nil
}

func (w windowsSystem) lookup(ctx context.Context, q query) (answer, error) {
	return lookupIn(ctx, w, q)
}
