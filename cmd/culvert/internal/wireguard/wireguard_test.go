package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// fake is WireGuard with one interface.
type fake struct {
	peers []wgtypes.Peer
	err   error
	block chan struct{} // not nil: no answer before it is closed
}

func (f *fake) Device(string) (*wgtypes.Device, error) {
	if f.block != nil {
		<-f.block
	}
	return &wgtypes.Device{Peers: f.peers}, f.err
}

func (f *fake) Close() error { return nil }

func peer(endpoint string) wgtypes.Peer {
	a, err := net.ResolveUDPAddr("udp", endpoint)
	if err != nil {
		panic(err)
	}
	return wgtypes.Peer{Endpoint: a}
}

func TestEndpoints(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    fake
		want string
	}{
		{"no WireGuard", fake{err: os.ErrNotExist}, "[] <nil>"},
		{"no peer", fake{}, "[] <nil>"},
		{"a peer that was not heard of yet", fake{peers: []wgtypes.Peer{{}}}, "[] <nil>"},
		{"peers in order, each once", fake{peers: []wgtypes.Peer{peer("[2001:db8::7]:51820"), {}, peer("203.0.113.9:51820"), peer("198.51.100.7:4500"), peer("203.0.113.9:51820")}},
			"[198.51.100.7:4500/udp 203.0.113.9:51820/udp [2001:db8::7]:51820/udp] <nil>"},
		{"IPv4 in the disguise of IPv6", fake{peers: []wgtypes.Peer{peer("[::ffff:203.0.113.9]:51820")}}, "[203.0.113.9:51820/udp] <nil>"},
		{"no address of a host", fake{peers: []wgtypes.Peer{peer("0.0.0.0:51820"), peer("203.0.113.9:0")}}, "[] <nil>"},
		{"not permitted", fake{err: os.ErrPermission}, "[] read WireGuard's settings of wg0: permission denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := endpoints(t.Context(), "wg0", func() (reader, error) { return &tt.f, nil })
			if text := fmt.Sprint(got, err); !strings.HasPrefix(text, tt.want) {
				t.Errorf("got %s, want %s", text, tt.want)
			}
		})
	}
}

// TestEndpointsDoesNotWait: a program that does not answer holds nobody up.
func TestEndpointsDoesNotWait(t *testing.T) {
	stopped := &fake{block: make(chan struct{})}
	defer close(stopped.block)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := endpoints(ctx, "wg0", func() (reader, error) { return stopped, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	if _, err := endpoints(t.Context(), "wg0", func() (reader, error) { return stopped, nil }); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("patience: %v", err)
	}
}
