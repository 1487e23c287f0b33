package witness

import (
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-project/culvert/loader"
)

// TestResolvers: a sender chooses where it asks, so what is kept is bounded, and
// the gateway is among it all the same.
func TestResolvers(t *testing.T) {
	r, now := resolvers{}, time.Now()
	to := func(i int, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), port)
	}
	for i := range 1000 {
		r.note(to(i, portDNS), protoUDP, loader.LeakProtected, "tun0", false, now)
	}
	gateway := netip.MustParseAddrPort("192.168.1.1:853")
	r.note(gateway, protoTCP, loader.LeakGateway, "tun0", true, now)
	r.note(gateway, protoTCP, loader.LeakGateway, "tun0", false, now.Add(-time.Second)) // an older one, read later
	r.note(to(2000, 5353), protoUDP, loader.LeakGateway, "tun0", false, now)            // not DNS
	r.note(to(2001, portDNS), 132, loader.LeakGateway, "tun0", false, now)
	if len(r) != resolversKept {
		t.Errorf("%d kept, want %d", len(r), resolversKept)
	}
	got := r.shown(now.Add(time.Minute))
	if len(got) != resolversShown || got[0].Address != gateway.Addr() || !got[0].Gateway || !got[0].Dropped {
		t.Errorf("shown: %+v", got)
	}
	if got := r.shown(now.Add(2 * resolverFor)); len(got) != 0 {
		t.Errorf("hours later: %+v", got)
	}
}

// TestExempt: what a rule let pass is summed by interface and reason, and is no
// leak. What lies above another interface is counted there.
func TestExempt(t *testing.T) {
	l := newLedger(&fakeSystem{}, func(uint32) (owner, bool) { return owner{}, false })
	l.read(t.Context(), []loader.Counter{
		{Interface: 2, Prefix: 1, Reason: loader.ExemptND, Packets: 3, Bytes: 300},
		{Interface: 2, Prefix: 5, Reason: loader.ExemptND, Packets: 2, Bytes: 200},
		{Interface: 2, Prefix: 1, Reason: loader.ExemptDHCP, Packets: 1, Bytes: 342},
		{Interface: 3, Prefix: 1, Reason: loader.ExemptND, Packets: 9, Bytes: 900, Upper: true},
	}, nil, time.Now())
	got := l.leaks(10)
	if len(got.Exempt) != 2 || got.Packets != 0 || got.Exempt[1].Packets != 5 || got.Exempt[1].Bytes != 500 || got.Exempt[0].Reason != "exempt-dhcp" {
		t.Errorf("%+v", got)
	}
}
