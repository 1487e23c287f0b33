// Package wireguard reads from WireGuard's own settings where a tunnel's packets
// go: the kernel's, and those of a program that does WireGuard in user space.
package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/culvert-project/culvert/enforce"
)

// patience is how long WireGuard may take to answer. A program in user space may
// be stopped.
const patience = 2 * time.Second

// reader is how settings are read: the one of this system, or a test's.
type reader interface {
	Device(name string) (*wgtypes.Device, error)
	Close() error
}

// Endpoints returns the endpoints of the peers of an interface, none when it is no
// WireGuard's or no peer has one. It waits for two seconds at most.
func Endpoints(ctx context.Context, device string) ([]enforce.Server, error) {
	return endpoints(ctx, device, func() (reader, error) { return wgctrl.New() })
}

func endpoints(ctx context.Context, device string, open func() (reader, error)) ([]enforce.Server, error) {
	type answer struct {
		device *wgtypes.Device
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		d, err := read(device, open)
		answered <- answer{d, err}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a := <-answered:
		switch {
		case errors.Is(a.err, fs.ErrNotExist):
			return nil, nil
		case a.err != nil:
			return nil, fmt.Errorf("read WireGuard's settings of %s: %w", device, a.err)
		}
		return servers(a.device.Peers), nil
	case <-timer.C:
		return nil, fmt.Errorf("read WireGuard's settings of %s: no answer in %s", device, patience)
	case <-ctx.Done():
		return nil, fmt.Errorf("read WireGuard's settings of %s: %w", device, ctx.Err())
	}
}

func read(device string, open func() (reader, error)) (*wgtypes.Device, error) {
	r, err := open()
	if err != nil {
		return nil, err
	}
	defer r.Close() //nolint:errcheck // only read
	return r.Device(device)
}

// servers are the endpoints of all peers, in an order that does not change.
func servers(peers []wgtypes.Peer) (out []enforce.Server) {
	for _, p := range peers {
		if p.Endpoint == nil {
			continue
		}
		at := p.Endpoint.AddrPort()
		a := at.Addr().Unmap().WithZone("")
		if at.Port() == 0 || !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			continue
		}
		out = append(out, enforce.Server{Addr: netip.AddrPortFrom(a, at.Port()), Proto: "udp"})
	}
	slices.SortFunc(out, func(a, b enforce.Server) int {
		return cmp.Or(a.Addr.Addr().Compare(b.Addr.Addr()), cmp.Compare(a.Addr.Port(), b.Addr.Port()))
	})
	return slices.Compact(out)
}
