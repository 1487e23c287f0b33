//go:build linux

package e2eleak

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

const guestAddr = "172.31.200.2"

// bridge makes a network of containers on the client, inside what is protected,
// with one container in it.
func bridge(t *testing.T, s *stub) *testenv.NS {
	t.Helper()
	guest := testenv.Namespace(t, "guest")
	s.Client.IP(t, "link add docker0 type bridge")
	s.Client.IP(t, "link set docker0 up")
	testenv.Veth(t, testenv.End{NS: s.Client, Name: "cont1"}, testenv.End{NS: guest, Name: "eth0", Addrs: testenv.Prefixes(guestAddr + "/24")})
	s.Client.IP(t, "link set cont1 master docker0")
	s.Client.AddAddr(t, "docker0", testenv.Prefixes("172.31.200.1/24")...)
	return guest
}

// TestExcludedBridge: an excluded bridge is so for packets as for routes, though
// its port is an interface of its own.
func TestExcludedBridge(t *testing.T) {
	needs(t)
	s := newStub(t)
	guest := bridge(t, s)
	d := s.daemon(t, "--on-leak", "drop", "--exclude-interface", "docker0")
	c := testenv.Capture(t, guest, "eth0", filter(guestAddr))
	speech{dst: guestAddr, count: gatewayBurst}.say(t, s.Client)
	c.Wait(gatewayBurst, patience)
	if got := exact(t, c); got.Packets != gatewayBurst {
		t.Errorf("%d of %d arrived", got.Packets, gatewayBurst)
	}
	if got := s.table(t); got.Packets != 0 {
		t.Errorf("counted as leaks: %+v", got.totals)
	}
	s.dropped(t, "what does not go by it", s.Client, speech{dst: "172.31.1.10", device: "eth0"})
	stopped(t, d)
}

// TestContainerStops: what left by a bridge and its port is one leak each, also
// when the container stops and when the network is removed.
func TestContainerStops(t *testing.T) {
	needs(t)
	s := newStub(t)
	guest := bridge(t, s)
	d := s.daemon(t)
	c := testenv.Capture(t, guest, "eth0", filter(guestAddr))
	speech{dst: guestAddr, count: gatewayBurst, device: "docker0"}.say(t, s.Client)
	c.Wait(gatewayBurst, patience)
	sent := exact(t, c)
	same(t, "while it runs", sent, s.settled(t, gatewayBurst))
	if list := s.watched(t); !slices.Contains(list, "cont1") || !slices.Contains(list, "docker0") {
		t.Fatalf("watched are %v", list)
	}
	for _, gone := range []string{"cont1", "docker0"} {
		s.Client.IP(t, "link del "+gone)
		testenv.Eventually(t, patience, gone+" is watched no longer", func() bool {
			return !slices.Contains(s.watched(t), gone)
		})
		for range 2 {
			same(t, "without "+gone, sent, s.table(t).totals)
		}
	}
	stopped(t, d)
}

// watched names the interfaces that the witness knows.
func (s *stub) watched(t *testing.T) (names []string) {
	t.Helper()
	var st struct {
		Witness struct {
			Interfaces []struct {
				Interface string `json:"interface"`
			} `json:"interfaces"`
		} `json:"witness"`
	}
	if out := s.prog.Exec(t, "status", "--json"); json.Unmarshal([]byte(out.Stdout), &st) != nil {
		t.Fatalf("culvert status --json: %s", out)
	}
	for _, i := range st.Witness.Interfaces {
		names = append(names, i.Interface)
	}
	return names
}
