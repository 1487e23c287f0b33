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
