//go:build linux

package e2e

import (
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// TestAdvertisedAfterwards: a default route that the kernel made of a router
// advertisement is given back as one that it goes on caring for. What the next
// advertisements say is heeded: the addresses' lifetimes, and that a router is none
// any more. Two routers stay two routes. Nor is anything complained of.
func TestAdvertisedAfterwards(t *testing.T) {
	needs(t)
	s := newStub(t)
	complaints := kernelLog(t)
	s.ip(t, "-6 route del default\n-6 route add ::/0 dev tun0 metric 1024")
	s.LAN.Forward(t)
	s.Client.AcceptRA(t, "eth0")
	own, second := s.LAN.LinkLocal(t, "eth0"), netip.MustParseAddr("fe80::66")
	s.LAN.IP(t, "addr", "add", "fe80::66/64", "dev", "eth0", "nodad")
	prefix := func(life time.Duration) []testenv.RAPrefix {
		return []testenv.RAPrefix{{Prefix: netip.MustParsePrefix("fd77:0:0:5::/64"), Lifetime: life}}
	}
	first := testenv.RouterAdvert{NS: s.LAN, Device: "eth0", From: own, Lifetime: time.Hour, Preference: testenv.High, Prefixes: prefix(time.Hour)}
	other := testenv.RouterAdvert{NS: s.LAN, Device: "eth0", From: second, Lifetime: time.Hour, Preference: testenv.High}
	first.Send(t)
	other.Send(t)
	if !eventually(func() bool { return len(s.advertised(t)) == 2 && s.validFor(t) > 0 }) {
		t.Fatalf("the advertisements made\n%s\n%s", s.Client.IP(t, "-6", "route", "show"), s.Client.IP(t, "-6", "addr", "show", "dev", "eth0"))
	}
	before := s.advertised(t)

	for round := range 2 { // what was given back once is given back as well again
		d := s.daemon(t, "--protect", "::/0", "--server", "203.0.113.10:1194/udp", "--exclude", "fd77::/48,fd88::/64")
		if left := s.advertised(t); len(left) > 0 {
			t.Fatalf("while enforced these stand:\n%s", strings.Join(left, "\n"))
		}
		if round == 1 {
			n := statusOf(t, s.prog).removed()
			first.Send(t) // its lifetime is renewed while it is held
			testenv.Eventually(t, patience, "the renewed route's removal", func() bool { return statusOf(t, s.prog).removed() > n })
		}
		stopped(t, d)
		if after := s.advertised(t); strings.Join(after, "\n") != strings.Join(before, "\n") {
			t.Fatalf("given back:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	}

	first.Prefixes = prefix(3 * time.Hour)
	first.Send(t)
	if !eventually(func() bool { return s.validFor(t) > 2*3600 }) {
		t.Errorf("the address is valid for %d s after an advertisement that says three hours", s.validFor(t))
	}
	other.Lifetime = 0
	other.Send(t)
	if !eventually(func() bool { return len(s.advertised(t)) == 1 }) {
		t.Errorf("a router that is none any more is still used:\n%s", strings.Join(s.advertised(t), "\n"))
	}
	if said := complaints(); len(said) > 0 {
		t.Errorf("the kernel complains:\n%s", strings.Join(said, "\n"))
	}
}

var (
	lifetime = regexp.MustCompile(` expires \d+sec`)
	validity = regexp.MustCompile(`fd77::5:\S+ [^\n]*\n\s+valid_lft (\d+)sec`)
	// The one way to give such a route back to the kernel's care does not say who made it.
	maker = regexp.MustCompile(` proto (ra|boot)`)
)

// advertised lists the default routes of routers, one that the kernel shows as
// multipath by all its lines.
func (s *stub) advertised(t testing.TB) (out []string) {
	t.Helper()
	for line := range strings.Lines(s.Client.IP(t, "-6", "route", "show", "default")) {
		if line = strings.TrimSpace(line); strings.Contains(line, "dev eth0") || !strings.HasPrefix(line, "default dev tun0") {
			line = lifetime.ReplaceAllString(maker.ReplaceAllString(line, ""), "")
			out = append(out, strings.TrimSpace(strings.ReplaceAll(line, " hoplimit 64", "")))
		}
	}
	return out
}

// validFor returns for how many seconds the advertised prefix's address is valid.
func (s *stub) validFor(t testing.TB) int {
	t.Helper()
	m := validity.FindStringSubmatch(s.Client.IP(t, "-6", "addr", "show", "dev", "eth0"))
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// kernelLog returns what gives the kernel's complaints about router advertisements
// from now on.
func kernelLog(t testing.TB) func() []string {
	t.Helper()
	f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Seek(0, 2); err != nil {
		t.Fatal(err)
	}
	return func() (out []string) {
		b := make([]byte, 8192)
		for {
			n, err := unix.Read(int(f.Fd()), b)
			if err == unix.EPIPE { // some were overwritten
				continue
			}
			if err != nil || n <= 0 {
				return out
			}
			if line := string(b[:n]); strings.Contains(line, "ICMPv6: RA") {
				out = append(out, strings.TrimSpace(line))
			}
		}
	}
}
