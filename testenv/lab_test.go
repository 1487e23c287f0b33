//go:build linux

package testenv

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func needLab(t *testing.T) {
	t.Helper()
	t.Parallel()
	Require(t, Root, TUN, IPRoute, OpenVPN, Dnsmasq, DHClient)
}

// whoAnswers asks both families of the target's addresses by both transports.
func whoAnswers(t *testing.T, n *NS, want4, want6 string) {
	t.Helper()
	for dst, want := range map[netip.Addr]string{TargetAddr: want4, TargetAddr6: want6} {
		for _, network := range []string{"udp", "tcp"} {
			// A datagram may be lost on a busy machine: ask again.
			var got string
			var err error
			Until(10*time.Second, func() bool {
				got, err = n.Ask(network, netip.AddrPortFrom(dst, AnswerPort), 3*time.Second)
				return got != ""
			})
			if got != want {
				t.Errorf("%s %s: %q answers (%v), want %q", network, dst, got, err, want)
			}
		}
	}
}

// marked is traffic to the target that no other traffic is mistaken for.
func marked(dst netip.Addr, n int) (Blast, Filter) {
	f := To(dst.String())
	f.Proto, f.Port, f.Marker = unix.IPPROTO_UDP, 5000, "secret"
	return Blast{Dst: netip.AddrPortFrom(dst, 5000), Count: n, Rate: 2000, Marker: "secret"}, f
}

func TestTunnelVisionLeaksWithoutProtection(t *testing.T) {
	needLab(t)
	lab := NewLab(t, LabOptions{})
	before := lab.Client.MainTable(t)
	vpn := lab.Connect(t)
	whoAnswers(t, lab.Client, "target", "target")

	check := func(dst netip.Addr, inTunnel, stolen uint64) {
		t.Helper()
		blast, filter := marked(dst, 60)
		through, leak, rogue := lab.Arrived(t, filter), lab.Leaks(t, filter), lab.Stolen(t, filter)
		lab.Client.Send(t, blast)
		through.Wait(inTunnel, linkWait)
		rogue.Wait(stolen, linkWait)
		if got := stopped(t, through); got.Packets != inTunnel || got.Lost > 0 {
			t.Errorf("%s: at the target: %v, want %d", dst, got, inTunnel)
		}
		for name, c := range map[string]*Counter{"attacker": rogue, "client's eth0": leak} {
			if got := stopped(t, c); got.Packets != stolen || got.Lost > 0 {
				t.Errorf("%s: at the %s: %v, want %d", dst, name, got, stolen)
			}
		}
	}
	check(TargetAddr, 60, 0)
	check(TargetAddr6, 60, 0)

	lab.DHCP(t, TunnelVision())
	DHCPClient{NS: lab.Client, Device: "eth0", Program: ISCDhclient}.Start(t)
	lab.Client.AcceptRA(t, "eth0")
	lab.Advertise().Send(t)
	Eventually(t, linkWait, "the IPv6 attack", func() bool { return lab.Client.DeviceTo(TargetAddr6) == "eth0" })
	whoAnswers(t, lab.Client, "attacker", "attacker")
	check(TargetAddr, 0, 60)
	check(TargetAddr6, 0, 60)

	vpn.Stop(t)
	if lab.Client.HasLink("tun0") {
		t.Error("tun0 is still there")
	}
	if got := lab.Client.MainTable(t); got == before {
		t.Error("the attack's routes are gone with the VPN")
	}
}

func TestUnconfiguredClient(t *testing.T) {
	needLab(t)
	lab := NewLab(t, LabOptions{Unconfigured: true, NoVPN: true})
	if got := lab.Client.DeviceTo(ServerAddr); got != "network is unreachable" {
		t.Errorf("before DHCP: %s", got)
	}
	lab.DHCP(t)
	DHCPClient{NS: lab.Client, Device: "eth0"}.Start(t)
	if n, err := lab.Client.Ping(ServerAddr, 1, 2*time.Second); n != 1 {
		t.Errorf("ping the server: %v", err)
	}
	RouterAdvert{
		NS: lab.Router, Device: "lan", Lifetime: time.Hour,
		Prefixes: []RAPrefix{{Prefix: netip.MustParsePrefix("fd77::/64"), Lifetime: time.Hour}},
	}.Send(t)
	Eventually(t, 3*time.Second, "IPv6 by advertisement", func() bool {
		n, _ := lab.Client.Ping(ServerAddr6, 1, time.Second)
		return n == 1
	})
}

func TestOpenVPNSignals(t *testing.T) {
	needLab(t)
	lab := NewLab(t, LabOptions{})
	before := lab.Client.MainTable(t)
	log := filepath.Join(t.TempDir(), "hooks")
	hook := writeScript(t, "hook", `echo "$script_type $dev $WORD" >> `+log)
	client := lab.VPNClient()
	client.PersistTun = true
	client.Config = []string{"setenv WORD hello"}
	client.Hooks = map[string]string{}
	for _, h := range []string{"up", "route-up", "route-pre-down", "down"} {
		client.Hooks[h] = hook
	}
	vpn := client.Start(t)
	vpn.WaitUp(t, 1)
	index := func() int {
		hop, err := lab.Client.RouteGet(TargetAddr, 0)
		if err != nil {
			t.Fatal(err)
		}
		return hop.Index
	}
	first := index()
	vpn.Restart(t, syscall.SIGUSR1)
	if got := index(); got != first {
		t.Errorf("SIGUSR1 with persist-tun made another device")
	}
	whoAnswers(t, lab.Client, "target", "target")
	vpn.Restart(t, syscall.SIGHUP)
	whoAnswers(t, lab.Client, "target", "target")
	vpn.Stop(t)
	if got := lab.Client.MainTable(t); got != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, got)
	}
	said, _ := os.ReadFile(log)
	once := "up tun0 hello\nroute-up tun0 hello\nroute-pre-down tun0 hello\ndown tun0 hello\n"
	if string(said) != once+once {
		t.Errorf("hooks: %q", said)
	}
}

func TestOpenVPNKilled(t *testing.T) {
	needLab(t)
	lab := NewLab(t, LabOptions{})
	before := lab.Client.MainTable(t)
	vpn := lab.Connect(t)
	vpn.Kill()
	Eventually(t, linkWait, "tun0 goes with its process", func() bool { return !lab.Client.HasLink("tun0") })
	if got := lab.Client.MainTable(t); got != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, got)
	}
}

func TestOpenVPNVariants(t *testing.T) {
	needLab(t)
	full := []string{"redirect-gateway def1 ipv6", "route 203.0.113.77 255.255.255.255 net_gateway"}
	for name, opts := range map[string]LabOptions{
		"full tunnel by UDP":   {Push: full},
		"full tunnel by TCP":   {Push: full, TCP: true},
		"split tunnel by IPv6": {Over6: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := NewLab(t, opts)
			lab.Connect(t)
			whoAnswers(t, lab.Client, "target", "target")
			other := map[string]string{"8.8.8.8": "tun0", "2001:db8:7::1": "tun0", "203.0.113.77": "eth0", "203.0.113.10": "eth0"}
			if opts.Push == nil {
				other = map[string]string{"8.8.8.8": "eth0", "2001:db8:7::1": "eth0"}
			}
			for dst, want := range other {
				if got := lab.Client.DeviceTo(addr(dst)); got != want {
					t.Errorf("%s leaves by %s, want %s", dst, got, want)
				}
			}
		})
	}
}

func TestOpenVPNPingRestart(t *testing.T) {
	needLab(t)
	lab := NewLab(t, LabOptions{})
	client := lab.VPNClient()
	client.PingRestart = 2 * time.Second
	client.PersistTun = true
	vpn := client.Start(t)
	vpn.WaitUp(t, 1)
	lab.Router.LinkDown(t, "wan")
	vpn.WaitOutput(t, "Inactivity timeout", 1, serviceWait)
	if !lab.Client.HasLink("tun0") {
		t.Error("persist-tun did not keep the device")
	}
	lab.Router.LinkUp(t, "wan")
	lab.Router.IP(t, "-6 addr replace 2001:db8:113::1/64 dev wan")
	vpn.WaitUp(t, 2)
	if got, err := lab.Client.Ask("udp", netip.AddrPortFrom(TargetAddr, AnswerPort), 3*time.Second); got != "target" {
		t.Errorf("%q answers (%v)", got, err)
	}
}

func TestStub(t *testing.T) {
	t.Parallel()
	stub := NewStub(t)
	stub.Client.IP(t, "route add", SiteNet.String(), "dev tun0")
	blast, filter := marked(TargetAddr, 100)
	in, out := stub.Tun.Count(filter), stub.Leaks(t, filter)
	stub.Client.Send(t, blast)
	if a, b := stopped(t, in), stopped(t, out); a.Packets != 100 || b.Packets != 0 {
		t.Errorf("in the tunnel %v, outside %v", a, b)
	}
	stub.Client.IP(t, "route add", AttackNet.String(), "via 10.77.0.66")
	in, out = stub.Tun.Count(filter), stub.Leaks(t, filter)
	stub.Client.Send(t, blast)
	if a, b := stopped(t, in), stopped(t, out); a.Packets != 0 || b.Packets != 100 {
		t.Errorf("in the tunnel %v, outside %v", a, b)
	}
}

func TestScript(t *testing.T) {
	t.Parallel()
	var order strings.Builder
	err := Script("demo", &order, func(t TB) {
		dir := t.TempDir()
		t.Cleanup(func() {
			if _, err := os.Stat(dir); err == nil {
				t.Logf("last")
			}
		})
		t.Cleanup(func() { t.Logf("first") })
		t.Errorf("one")
		t.Fatalf("two")
		t.Logf("never")
	})
	if order.String() != "first\nlast\n" || err == nil || err.Error() != "one\ntwo" {
		t.Errorf("%q, %v", order.String(), err)
	}
	if err := Script("fine", nil, func(TB) {}); err != nil {
		t.Error(err)
	}
}
