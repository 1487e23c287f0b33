//go:build linux

package promise

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/enforce/rtnl"
	"github.com/culvert-project/culvert/testenv"
)

// device is an interface of the host.
type device struct {
	name         string
	addr4, addr6 netip.Prefix
	gate4, gate6 netip.Addr // neighbours on it
}

// The host's interfaces. The network of eth1 lies where the random prefixes
// do. The link-local addresses are fixed, for a flushed one must come back.
var devices = []device{
	newDevice("eth0", "192.0.2.10/24 fd01::10/64", "192.0.2.254 fe80::fe"),
	newDevice("eth1", "10.0.0.29/29 fd00::1d/125", "10.0.0.30 fd00::1e"),
	newDevice("eth2", "172.17.0.1/16 fd17::1/64", "172.17.0.9 fe80::4"),
	newDevice("tun0", "10.8.0.2/24 fd08::2/64", "10.8.0.1 fd08::1"),
	newDevice("tun1", "10.9.0.2/24 fd09::2/64", "10.9.0.1 fd09::1"),
}

func newDevice(name, addrs, gates string) device {
	a, g := strings.Fields(addrs), strings.Fields(gates)
	return device{
		name: name, addr4: netip.MustParsePrefix(a[0]), addr6: netip.MustParsePrefix(a[1]),
		gate4: netip.MustParseAddr(g[0]), gate6: netip.MustParseAddr(g[1]),
	}
}

func (d device) isTunnel() bool { return strings.HasPrefix(d.name, "tun") }

func (d device) gate(v6 bool) netip.Addr {
	if v6 {
		return d.gate6
	}
	return d.gate4
}

// neighbour is a line that makes the IPv6 gateway reachable for ever: Linux
// passes over the routes of one that does not answer.
func (d device) neighbour() string {
	return "neigh replace " + d.gate6.String() + " lladdr 02:00:00:00:00:fe dev " + d.name + " nud permanent"
}

func deviceNamed(name string) device {
	for _, d := range devices {
		if d.name == name {
			return d
		}
	}
	return device{name: name}
}

// lab is a host with three LANs and two tunnels, used for many tables one
// after the other.
type lab struct {
	ns, far  *testenv.NS
	ip4, ip6 *shell
	fib      *testenv.FIB
	ask      *asker
	sys      *rtnl.System
	orphans  bool // an answer that tells of no route is to be tried by a packet; see orphaned
	zero     bool // the kernel broadcasts to the lowest address of a subnet too (before Linux 5.14)
	tuns     map[string]*testenv.Tun
	objects  map[uint32][]string // interfaces of the nexthop objects
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{ns: testenv.Namespace(t, "host"), far: testenv.Namespace(t, "far"), tuns: map[string]*testenv.Tun{}}
	for _, d := range devices {
		if d.isTunnel() {
			l.tuns[d.name] = testenv.OpenTun(t, l.ns, d.name)
			continue
		}
		testenv.Veth(t, testenv.End{NS: l.ns, Name: d.name}, testenv.End{NS: l.far, Name: d.name})
	}
	l.ip4, l.ip6 = newShell(t, l.ns), newShell(t, l.ns, "-6")
	var err error
	if l.fib, err = l.ns.OpenFIB(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.fib.Close() })
	l.ask = newAsker(t, l.ns)
	for _, d := range devices {
		l.ask.names[l.index(t, d.name)] = d.name
	}
	l.sys = l.open(t)
	l.ip6.do(t, "route show table local") // see table
	l.reset(t, nil)
	l.zero = l.ask.match(t, question{dst: devices[0].addr4.Masked().Addr()}).typ == unix.RTN_BROADCAST
	return l
}

// open makes a System of the lab, as a process of its own would.
func (l *lab) open(t *testing.T) *rtnl.System {
	t.Helper()
	var sys *rtnl.System
	var err error
	l.ns.Run(t, func() { sys, err = rtnl.New() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.Close() })
	return sys
}

// reset makes the table that of a host just booted, then adds lines to it.
// Lines that the kernel refuses are passed over: random ones may be nonsense.
func (l *lab) reset(t testing.TB, lines []string) {
	t.Helper()
	l.ip6.do(t, "route flush table main")
	base := []string{"nexthop flush", "route flush table main"}
	for _, d := range devices {
		base = append(base,
			"addr flush dev "+d.name,
			"addr add "+d.addr4.String()+" dev "+d.name,
			"addr add "+d.addr6.String()+" dev "+d.name+" nodad")
		if !d.isTunnel() {
			base = append(base, "addr add fe80::10/64 dev "+d.name+" nodad", d.neighbour())
		}
	}
	l.ip4.do(t, append(base, lines...)...)
	testenv.Eventually(t, patience, "own addresses", func() bool { return l.settled(t) })
}

// settled reports whether the kernel has taken its own IPv6 addresses into
// use, which it does some time after they were added.
func (l *lab) settled(t testing.TB) bool {
	return !slices.ContainsFunc(devices, func(d device) bool {
		return l.ask.match(t, question{dst: d.addr6.Addr()}).typ != unix.RTN_LOCAL
	})
}

// batch feeds lines to one "ip" and returns what it complained of.
func (l *lab) batch(t testing.TB, option string, lines []string) string {
	t.Helper()
	cmd := l.ns.Command("ip", option, "-force", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Errorf("ip -batch: %v", err)
	}
	return string(out)
}

func (l *lab) index(t testing.TB, name string) (n uint32) {
	t.Helper()
	if _, err := fmt.Sscanf(l.ns.IP(t, "-o link show dev", name), "%d:", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

var (
	objectText = regexp.MustCompile(`^id (\d+) .*\bdev (\S+)`)
	groupText  = regexp.MustCompile(`^id (\d+) group (\S+)`)
)

// readObjects learns the nexthop objects as they are.
func (l *lab) readObjects(t testing.TB) {
	t.Helper()
	l.objects = map[uint32][]string{}
	lines := strings.Split(l.ip4.do(t, "nexthop show"), "\n")
	for _, line := range lines {
		if m := objectText.FindStringSubmatch(line); m != nil {
			l.objects[number(m[1])] = []string{m[2]}
		}
	}
	for _, line := range lines {
		if m := groupText.FindStringSubmatch(line); m != nil {
			id := number(m[1])
			for _, member := range strings.Split(m[2], "/") {
				l.objects[id] = append(l.objects[id], l.objects[number(strings.Split(member, ",")[0])]...)
			}
		}
	}
}

func number(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32)
	return uint32(n)
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
