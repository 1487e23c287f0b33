package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/enforce"
)

func samplePlan() planDoc {
	return newPlanDoc(enforce.Preview{
		Actions: []enforce.PreviewAction{
			{Kind: "put", Route: "192.168.1.1/32 dev eth0", Reason: "keeps the way to the VPN server", Links: []string{"eth0"}},
			{Kind: "put", Route: "128.0.0.0/1 dev tun0", Reason: "the tunnel's route must exist", Links: []string{"tun0"}},
			{Kind: "remove", Route: "0.0.0.0/1 via 192.168.1.1 dev eth0", Reason: "equal to 0.0.0.0/1", Links: []string{"eth0"}},
			{Kind: "remove", Route: "192.168.1.0/24 dev eth0", Reason: "longer than 128.0.0.0/1", Links: []string{"eth0"}, Connected: true},
			{Kind: "remove", Route: "172.17.0.0/16 dev docker0", Reason: "longer than 128.0.0.0/1", Links: []string{"docker0"}, Connected: true},
		},
		Missing: []netip.Prefix{netip.MustParsePrefix("128.0.0.0/1"), netip.MustParsePrefix("10.8.0.0/24")},
	}, []enforce.Session{{Tunnel: "tun0"}})
}

func TestPlanText(t *testing.T) {
	var b bytes.Buffer
	printPlan(&b, samplePlan())
	golden(t, "plan.txt", b.String())
}

func TestPlanJSON(t *testing.T) {
	var b bytes.Buffer
	if err := writeJSON(&b, samplePlan()); err != nil {
		t.Fatal(err)
	}
	golden(t, "plan.json", b.String())
}

// TestPlanKinds: what is taken away or given back is not said to be added.
func TestPlanKinds(t *testing.T) {
	var b bytes.Buffer
	printPlan(&b, newPlanDoc(enforce.Preview{Actions: []enforce.PreviewAction{
		{Kind: "withdraw", Route: "192.168.1.1/32 dev eth0", Reason: "no longer needed", Links: []string{"eth0"}},
		{Kind: "restore", Route: "172.31.1.0/24 via 192.168.1.66 dev eth0", Reason: "nothing protects it", Links: []string{"eth0"}},
		{Kind: "forget", Route: "172.31.2.0/24 dev gone0", Reason: "its interface is gone"},
	}}, nil))
	want := "Would be withdrawn, culvert's own:\n  192.168.1.1/32 dev eth0  (no longer needed)\n" +
		"Held, and would be given back:\n  172.31.1.0/24 via 192.168.1.66 dev eth0  (nothing protects it)\n" +
		"Held, and would not come back:\n  172.31.2.0/24 dev gone0  (its interface is gone)\n"
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}

func TestPlanSettled(t *testing.T) {
	var b strings.Builder
	printPlan(&b, newPlanDoc(enforce.Preview{}, nil))
	if b.String() != "nothing would change: the table is right\n" {
		t.Errorf("got %q", b.String())
	}
}

func TestWhoNotices(t *testing.T) {
	tests := []struct {
		a    enforce.PreviewAction
		want string
	}{
		{enforce.PreviewAction{Links: []string{"docker0"}, Connected: true}, "containers (Docker) on docker0"},
		{enforce.PreviewAction{Links: []string{"br-0a1b2c3d4e5f"}, Connected: true}, "containers (a Docker network) on br-0a1b2c3d4e5f"},
		{enforce.PreviewAction{Links: []string{"flannel.1"}}, "containers (flannel) on flannel.1"},
		{enforce.PreviewAction{Links: []string{"cali0a1b2c3d"}}, "containers (Calico) on cali0a1b2c3d"},
		{enforce.PreviewAction{Links: []string{"tunl0"}}, "containers of other machines (IPIP, Calico) on tunl0"},
		{enforce.PreviewAction{Links: []string{"vxlan.calico"}}, "containers or machines elsewhere (VXLAN) on vxlan.calico"},
		{enforce.PreviewAction{Links: []string{"virbr0"}}, "virtual machines (libvirt) on virbr0"},
		{enforce.PreviewAction{Links: []string{"eth0"}, Connected: true}, "the local network on eth0"},
		{enforce.PreviewAction{Links: []string{"eth0", "eth1"}, Default: true}, "everything that uses the default route by eth0, eth1"},
		{enforce.PreviewAction{Links: []string{"eth0"}}, ""},
		{enforce.PreviewAction{}, ""},
	}
	for _, tt := range tests {
		if got := whoNotices(tt.a); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.a, got, tt.want)
		}
	}
}
