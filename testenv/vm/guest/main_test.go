//go:build linux && vm

package guest

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// stage is where start.sh looks for a case that wants a reboot and is to go on
// after it.
const stage = "/var/lib/vm-cases/stage"

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() == "" {
		begin()
	}
	os.Exit(m.Run())
}

// begin insists on the machine of testenv/vm, and takes away what the last case
// left.
func begin() {
	if _, err := os.Stat("/payload/cases"); err != nil {
		fmt.Println("these cases change the machine they run on; they run in one of their own: make vm")
		os.Exit(1)
	}
	if staged() != "" { // the second half of a case: what is there is its own
		if err := os.WriteFile("/run/vm-cases.stage", nil, 0o600); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	out, err := try(`
		systemctl disable -q culvert 2>/dev/null
		systemctl stop culvert 'openvpn-client@*' 'wg-quick@*' NetworkManager strongswan 2>/dev/null
		systemctl reset-failed
		timeout 20 culvert release >/dev/null 2>&1
		for n in eth0 tun0 tun1 wg0 ipsec0; do ip link del $n 2>/dev/null; done
		ip xfrm policy flush; ip xfrm state flush
		ip route flush table main; ip -6 route flush table main
		rm -rf /etc/culvert/* /var/lib/culvert /etc/openvpn/client/* /etc/NetworkManager/dispatcher.d/*culvert
		ls /run/netns 2>/dev/null | xargs -r -n 1 ip netns del
		install -m 755 /payload/culvert /usr/bin/culvert
		sysctl -q -w net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
		modprobe tun
		true`)
	if err != nil {
		fmt.Printf("begin: %v\n%s\n", err, out)
		os.Exit(1)
	}
}

// staged is what a case wrote before the reboot, "" when there was none.
func staged() string {
	b, err := os.ReadFile(stage)
	if err != nil {
		return ""
	}
	return string(b)
}
