//go:build linux

package testenv

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cafe is a client and a hostile DHCP server.
func cafe(t *testing.T) (client, attacker *NS) {
	t.Helper()
	client, attacker = Namespace(t, "client"), Namespace(t, "attacker")
	Veth(t, End{NS: client, Name: "eth0"}, End{NS: attacker, Name: "eth0", Addrs: Prefixes("10.77.0.66/24")})
	return client, attacker
}

func TestDHCPClients(t *testing.T) {
	t.Parallel()
	for program, want := range map[DHCPProgram]string{ISCDhclient: "eth0", BusyboxUdhcpc: "eth0 by default", BusyboxStatic: "eth0", Dhcpcd: "eth0"} {
		t.Run(string(program.Tool())+" "+want, func(t *testing.T) {
			t.Parallel()
			Require(t, Root, IPRoute, Dnsmasq, program.Tool())
			client, attacker := cafe(t)
			resolv, _ := os.ReadFile("/etc/resolv.conf")
			DHCPServer{
				NS: attacker, Device: "eth0", First: addr("10.77.0.100"), Last: addr("10.77.0.150"),
				Router: addr("10.77.0.1"), Lease: 2 * time.Minute, Options: []string{"6,10.77.0.1"},
				Static: []Static{Via("172.31.1.0/24", "10.77.0.66"), Via("0.0.0.0/0", "10.77.0.1")},
			}.Start(t)
			p := DHCPClient{NS: client, Device: "eth0", Program: program}.Start(t)
			has := func() bool {
				return strings.Contains(client.MainTable(t), "172.31.1.0/24 via 10.77.0.66 dev eth0")
			}
			if ignored := want == "eth0 by default"; ignored {
				if has() {
					t.Error("this client should ignore option 121")
				}
			} else {
				Eventually(t, 5*time.Second, "the route of option 121", has)
			}
			Eventually(t, 5*time.Second, "default route", func() bool { return client.DeviceTo(addr("8.8.8.8")) == "eth0" })
			if after, _ := os.ReadFile("/etc/resolv.conf"); !bytes.Equal(resolv, after) {
				t.Error("the client changed the host's resolv.conf")
			}
			renewals(t, program, client, p, has)
		})
	}
}

// renewals checks that the clients which can be told to renew put the route
// back.
func renewals(t *testing.T, program DHCPProgram, client *NS, p *Process, has func() bool) {
	t.Helper()
	if program != BusyboxStatic && program != Dhcpcd {
		return
	}
	client.IP(t, "route del 172.31.1.0/24")
	if err := p.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 5*time.Second, "the route after renewal", has)
}

func TestRouterAdvert(t *testing.T) {
	t.Parallel()
	Require(t, Root, IPRoute)
	client, router := Namespace(t, "client"), Namespace(t, "router")
	Veth(t, End{NS: client, Name: "eth0"}, End{NS: router, Name: "eth0", Addrs: Prefixes("fd77::66/64")})
	client.LinkLocal(t, "eth0")
	client.AcceptRA(t, "eth0")
	ra := RouterAdvert{
		NS: router, Device: "eth0", Lifetime: 30 * time.Minute, Preference: High,
		Prefixes: []RAPrefix{{Prefix: Prefixes("fd77::/64")[0], Lifetime: time.Hour}, {Prefix: Prefixes("fd78::/64")[0], Lifetime: time.Hour, NoAuto: true}},
		Routes:   []RARoute{{Prefix: Prefixes("fd31:0:0:1::/64")[0], Lifetime: time.Hour, Preference: Low}},
	}
	ra.Send(t)
	gateway := router.LinkLocal(t, "eth0").String()
	for _, want := range []string{
		"unicast default via " + gateway + " dev eth0 proto ra scope global metric 1024 expires Nsec hoplimit 64 pref high",
		"unicast fd31:0:0:1::/64 via " + gateway + " dev eth0 proto ra scope global metric 1024 expires Nsec pref low",
		"unicast fd77::/64 dev eth0 proto kernel",
		"unicast fd78::/64 dev eth0 proto kernel",
	} {
		if !Until(2*time.Second, func() bool { return strings.Contains(client.MainTable(t), want) }) {
			t.Errorf("missing: %s\n%s", want, client.MainTable(t))
		}
	}
	var own []string
	for _, p := range client.Addrs("eth0") {
		own = append(own, p.String())
	}
	if all := strings.Join(own, " "); !strings.Contains(all, "fd77:") || strings.Contains(all, "fd78:") {
		t.Errorf("addresses: %s", all)
	}
	ra.Lifetime, ra.Routes[0].Lifetime = 0, 0
	ra.Send(t)
	Eventually(t, 2*time.Second, "routes taken back", func() bool {
		table := client.MainTable(t)
		return !strings.Contains(table, "fd31:") && !strings.Contains(table, "default")
	})
}
