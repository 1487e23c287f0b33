//go:build linux

package testenv

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func stopped(t *testing.T, c *Counter) Count {
	t.Helper()
	count, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	return count
}

func TestCaptureIsExact(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	for _, dst := range []string{"10.9.0.2:5000", "[fd09::2]:5000"} {
		to := addrPort(dst)
		only := To(to.Addr().String())
		only.Proto, only.Port, only.Marker = unix.IPPROTO_UDP, 5000, "mark"
		out := only
		out.Direction = Out
		in, sent, other := Capture(t, b, "eth0", only), Capture(t, a, "eth0", out), Capture(t, b, "eth0", To("10.99.0.0/16"))
		a.Send(t, Blast{Dst: to, Count: 50, Marker: "else"})
		got := a.Send(t, Blast{Dst: to, Count: 20000, Size: 100, Marker: "mark"})
		header := uint64(28)
		if to.Addr().Is6() {
			header = 48
		}
		for name, c := range map[string]*Counter{"receiver": in, "sender": sent} {
			count := stopped(t, c)
			if count.Packets != uint64(got.Packets) || count.Bytes != count.Packets*(100+header) || count.Lost != 0 {
				t.Errorf("%s, %s: sent %v, counted %v", dst, name, got, count)
			}
		}
		if count := stopped(t, other); count.Packets != 0 {
			t.Errorf("another destination: %v", count)
		}
	}
}

func TestCaptureOutlivesLinkFlap(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	c := Capture(t, b, "eth0", To("10.9.0.2"))
	b.LinkDown(t, "eth0")
	b.LinkUp(t, "eth0")
	Eventually(t, linkWait, "carrier", func() bool { return a.DeviceTo(addr("10.9.0.2")) == "eth0" })
	a.Send(t, Blast{Dst: addrPort("10.9.0.2:9"), Count: 10})
	if got := c.Wait(10, linkWait); got.Packets < 10 {
		t.Errorf("counted %v", got)
	}
}

func TestCaptureOfADeletedLinkStops(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	c := Capture(t, b, "eth0", Filter{Proto: unix.IPPROTO_UDP})
	a.Send(t, Blast{Dst: addrPort("10.9.0.2:9"), Count: 10})
	a.LinkDel(t, "eth0")
	if got := stopped(t, c); got.Packets != 10 {
		t.Errorf("counted %v", got)
	}
}

func TestTunCountsWhatEnters(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	tun := OpenTun(t, a, "tun0", Prefixes("10.88.0.2/24", "fd88::2/64")...)
	a.IP(t, "route add 172.31.0.0/16 dev tun0")
	a.IP(t, "-6 route add fd31::/48 dev tun0")
	for _, dst := range []string{"172.31.1.10:5000", "[fd31::10]:5000"} {
		c := tun.Count(Filter{Proto: unix.IPPROTO_UDP})
		sent := a.Send(t, Blast{Dst: addrPort(dst), Count: 5000, Size: 200})
		if got := stopped(t, c); got.Packets != uint64(sent.Packets) || got.Lost != 0 {
			t.Errorf("%s: sent %v, counted %v", dst, sent, got)
		}
	}
	a.LinkDown(t, "tun0")
	time.Sleep(10 * time.Millisecond)
	a.LinkUp(t, "tun0")
	a.IP(t, "route add 172.31.0.0/16 dev tun0")
	c := tun.Count(To("172.31.0.0/16"))
	a.Send(t, Blast{Dst: addrPort("172.31.1.10:5000"), Count: 7})
	if got := c.Wait(7, linkWait); got.Packets != 7 {
		t.Errorf("after down and up: %v", got)
	}
	if err := tun.Close(); err != nil || a.HasLink("tun0") {
		t.Errorf("close: %v, link there: %v", err, a.HasLink("tun0"))
	}
	if err := tun.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestTunInject(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	tun := OpenTun(t, a, "tun0", Prefixes("10.88.0.2/24")...)
	c := Capture(t, a, "tun0", To("10.88.0.2"))
	pkt := []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 88, 0, 1, 10, 88, 0, 2}
	if err := tun.Inject(pkt); err != nil {
		t.Fatal(err)
	}
	if got := c.Wait(1, linkWait); got.Packets != 1 || got.Bytes != 20 {
		t.Errorf("counted %v", got)
	}
}

func TestBlastRateDeviceAndRefusals(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	start := time.Now()
	if sent := a.Send(t, Blast{Dst: addrPort("10.9.0.2:9"), Count: 100, Rate: 500}); sent.Packets != 100 {
		t.Errorf("sent %v", sent)
	}
	if d := time.Since(start); d < 190*time.Millisecond {
		t.Errorf("100 at 500 a second took %v", d)
	}
	sent := a.Send(t, Blast{Dst: addrPort("8.8.8.8:9"), Count: 3})
	if sent.Packets != 0 || sent.Refused[unix.ENETUNREACH] != 3 || !strings.Contains(sent.String(), "3 refused") {
		t.Errorf("no route: %v", sent)
	}
	c := Capture(t, b, "eth0", Filter{Proto: unix.IPPROTO_UDP, Port: 77})
	// With no route at all the device is asked by ARP, which b does not answer: the packets wait and are lost.
	if sent := a.Send(t, Blast{Dst: addrPort("10.9.0.2:77"), Count: 5, Device: "eth0", TOS: 0x10, Connected: true, Src: addr("10.9.0.1")}); sent.Packets < 1 {
		t.Errorf("bound to the device: %v", sent)
	}
	if got := c.Wait(1, linkWait); got.Packets < 1 {
		t.Errorf("bound to the device: %v", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if sent, err := a.Blast(ctx, Blast{Dst: addrPort("10.9.0.2:9"), Count: 1 << 30, Rate: 1000}); err != nil || sent.Packets > 500 {
		t.Errorf("stopped by its context: %v, %v", sent, err)
	}
}

func TestPingAndAsk(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	for _, dst := range []string{"10.9.0.2", "fd09::2"} {
		if n, err := a.Ping(addr(dst), 3, time.Second); n != 3 || err != nil {
			t.Errorf("ping %s: %d, %v", dst, n, err)
		}
	}
	if n, err := a.Ping(addr("10.9.0.77"), 1, 50*time.Millisecond); n != 0 || err != nil {
		t.Errorf("ping nobody: %d, %v", n, err)
	}
	if n, err := a.Ping(addr("8.8.8.8"), 2, 50*time.Millisecond); n != 0 || err == nil {
		t.Errorf("ping without a route: %d, %v", n, err)
	}
	Serve(t, b, addrPort("0.0.0.0:7"), "four")
	Serve(t, b, addrPort("[fd09::99]:7"), "six")
	b.AddAddr(t, "eth0", Prefixes("fd09::99/64")...)
	for _, network := range []string{"tcp", "udp"} {
		for dst, want := range map[string]string{"10.9.0.2:7": "four", "[fd09::99]:7": "six"} {
			if got, err := a.Ask(network, addrPort(dst), 2*time.Second); got != want || err != nil {
				t.Errorf("ask %s %s: %q, %v", network, dst, got, err)
			}
		}
	}
}
