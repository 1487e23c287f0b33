//go:build linux && vm

package guest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// bootLAN makes a LAN with a capture before the network is up, and sends from then
// on: packets bound to the LAN's device, for a protected address.
const bootLAN = `#!/bin/sh
set -e
ip netns add lan
ip link add eth0 type veth peer name client netns lan
ip -n lan addr add 10.77.0.1/24 dev client
ip -n lan link set client up
ip addr add 10.77.0.20/24 dev eth0
ip link set eth0 up
ip route add default via 10.77.0.1
ip netns exec lan tcpdump -i client -U -w /run/lan.pcap -Z root icmp and dst 172.31.1.10 2>/run/lan.log &
until grep -q listening /run/lan.log; do sleep 0.1; done
ping -q -I eth0 -i 0.05 172.31.1.10 >/dev/null 2>&1 &
`

const bootLANUnit = `[Unit]
DefaultDependencies=no
After=local-fs.target systemd-udevd.service
Before=network-pre.target
Wants=network-pre.target
[Service]
Type=forking
ExecStart=/bin/sh /var/lib/boot-lan.sh
KillMode=process
`

// TestReboot: a guard ends with a reboot, and begins again once the tunnel has been
// there. What leaves until then is measured; README names it as a limit. From then
// on nothing leaves, with the tunnel and when it has gone.
func TestReboot(t *testing.T) {
	r := &rig{t: t}
	t.Cleanup(r.tell)
	if staged() != "" {
		r.rebooted()
		return
	}
	r.write("/var/lib/boot-lan.sh", bootLAN, 0o755)
	r.write("/etc/systemd/system/boot-lan.service", bootLANUnit, 0o644)
	r.write(configFile, "on_loss: guard\n"+siteSession("tun0"), 0o644)
	r.sh("systemctl daemon-reload; systemctl enable culvert; systemctl add-wants sysinit.target boot-lan.service")
	if err := os.WriteFile(stage, []byte("rebooted"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) rebooted() {
	r.t.Helper()
	defer r.sh("systemctl disable culvert boot-lan")
	r.eventually("the unit is up", "systemctl is-active culvert")
	ready := time.Now().Add(-sinceActive(r))
	host, err := testenv.CurrentNS()
	if err != nil {
		r.t.Fatal(err)
	}
	defer host.Close()
	r.Lab = &testenv.Lab{Client: host}
	tun := r.tunnel()
	r.enforcing()
	r.pinned()
	guarded := time.Now()
	r.dropped(20)
	if err := tun.Close(); err != nil {
		r.t.Error(err)
	}
	r.dropped(20)
	counts := make([]int, 3)
	for _, at := range r.captured("/run/lan.pcap") {
		switch {
		case at.Before(ready):
			counts[0]++
		case at.Before(guarded):
			counts[1]++
		default:
			counts[2]++
		}
	}
	r.t.Logf("measured: reboot: %d left before the unit was up, %d from then until the tunnel came, %d after that", counts[0], counts[1], counts[2])
	if counts[2] != 0 || counts[0] == 0 {
		r.t.Errorf("%d packets left before the unit was up (the control), %d under the guard", counts[0], counts[2])
	}
}

// dropped waits until so many more packets were tried and stopped.
func (r *rig) dropped(more int) {
	r.t.Helper()
	was := r.status().Leaks.Dropped
	if !testenv.Until(patience, func() bool { return r.status().Leaks.Dropped >= was+more }) {
		r.t.Errorf("nobody sends: %d packets were dropped, and now %d", was, r.status().Leaks.Dropped)
	}
}

// captured are the times of a file's packets.
func (r *rig) captured(path string) (times []time.Time) {
	r.t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(r.sh("tcpdump -tt -n -r %s 2>/dev/null", path)), "\n") {
		stamp, _, _ := strings.Cut(line, " ")
		if sec, err := strconv.ParseFloat(stamp, 64); err == nil {
			times = append(times, time.UnixMicro(int64(sec*1e6)))
		}
	}
	return times
}

// sinceActive is how long ago the unit became active.
func sinceActive(r *rig) time.Duration {
	r.t.Helper()
	text := strings.TrimSpace(r.sh("systemctl show -P ActiveEnterTimestampMonotonic culvert"))
	at, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		r.t.Fatal(fmt.Errorf("ActiveEnterTimestampMonotonic: %w", err))
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		r.t.Fatal(err)
	}
	return time.Duration(now.Nano() - at*1000)
}
