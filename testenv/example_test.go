//go:build linux

package testenv_test

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// TunnelVision in a lab: the same address, asked before and after a rogue
// DHCP server has pushed a longer route. In a test, t is the *testing.T and
// Script is not needed.
func Example() {
	err := testenv.Script("tunnelvision", os.Stderr, func(t testenv.TB) {
		lab := testenv.NewLab(t, testenv.LabOptions{})
		lab.Connect(t)

		target := netip.AddrPortFrom(testenv.TargetAddr, testenv.AnswerPort)
		who := func() string {
			name, err := lab.Client.Ask("udp", target, 3*time.Second)
			if err != nil {
				t.Fatalf("nobody answers: %v", err)
			}
			return name
		}
		fmt.Println("with the VPN:", who())

		lab.DHCP(t, testenv.TunnelVision())
		testenv.DHCPClient{NS: lab.Client, Device: "eth0"}.Start(t)
		stolen := lab.Stolen(t, testenv.To(target.Addr().String()))
		fmt.Println("after a DHCP lease:", who())
		fmt.Println("packets that the attacker got:", stolen.Wait(1, time.Second).Packets)
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// with the VPN: target
	// after a DHCP lease: attacker
	// packets that the attacker got: 1
}
