//go:build linux

package testenv

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// pair makes two namespaces joined by eth0 on both sides.
func pair(t *testing.T) (a, b *NS) {
	t.Helper()
	Require(t, Root, IPRoute)
	a, b = Namespace(t, "a"), Namespace(t, "b")
	Veth(t,
		End{NS: a, Name: "eth0", Addrs: Prefixes("10.9.0.1/24", "fd09::1/64")},
		End{NS: b, Name: "eth0", Addrs: Prefixes("10.9.0.2/24", "fd09::2/64")})
	return a, b
}

func netnsInode(t *testing.T) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestNamespaceIsSeparateAndThreadsDie(t *testing.T) {
	t.Parallel()
	Require(t, Root)
	n := Namespace(t, "sep")
	host := netnsInode(t)
	var inside uint64
	for range 20 {
		n.Run(t, func() { inside = netnsInode(t) })
		if inside == host {
			t.Fatal("ran in the host's namespace")
		}
		if netnsInode(t) != host {
			t.Fatal("the caller's thread left the host's namespace")
		}
	}
}

func TestDoReportsGoexit(t *testing.T) {
	t.Parallel()
	Require(t, Root)
	n := Namespace(t, "exit")
	if err := n.Do(func() error { return os.ErrInvalid }); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("error of the function lost: %v", err)
	}
	err := Script("fatal", nil, func(t TB) {
		n.Run(t, func() { t.Fatalf("inner") })
		t.Errorf("went on after Fatalf")
	})
	if err == nil || err.Error() != "inner" {
		t.Errorf("got %v", err)
	}
}

func TestNameIsUsableAndGoes(t *testing.T) {
	t.Parallel()
	Require(t, Root, IPRoute)
	n, err := NewNS("named")
	if err != nil {
		t.Fatal(err)
	}
	out, err := Namespace(t, "host").Command("ip", "netns", "exec", n.Name(), "ip", "link").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "lo:") {
		t.Errorf("ip netns exec: %v: %s", err, out)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := os.Stat(n.path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("name still there: %v", err)
	}
}

func TestSweepSparesTheLiving(t *testing.T) {
	t.Parallel()
	Require(t, Root)
	n := Namespace(t, "alive")
	dead := netnsDir + "/" + namePrefix + "4194999-1-dead" // above the kernel's limit of process ids
	if err := os.WriteFile(dead, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if swept, err := Sweep(); err != nil || swept < 1 {
		t.Errorf("swept %d, %v", swept, err)
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("the dead one is still there")
	}
	if _, err := os.Stat(n.path()); err != nil {
		t.Errorf("the living one is gone: %v", err)
	}
}

func TestSysctlIsOfTheNamespace(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.Sysctl(t, "net.ipv4.conf.eth0.rp_filter", "2")
	read := func(n *NS) string {
		out, err := n.Command("cat", "/proc/sys/net/ipv4/conf/eth0/rp_filter").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	if got := read(a); got != "2" {
		t.Errorf("a: %s", got)
	}
	if got := read(b); got == "2" {
		t.Errorf("b: %s", got)
	}
	b.ReversePath(t, 1)
	if got := read(b); got != "1" {
		t.Errorf("b: %s", got)
	}
}

func TestSandboxKeepsTheHost(t *testing.T) {
	t.Parallel()
	Require(t, Root)
	n := Namespace(t, "sandbox")
	cmd := n.Command("sh", "-c", `
		set -e
		echo private > /etc/resolv.conf; cat /etc/resolv.conf
		test -z "$(ls -A /run)"; echo x > /run/x
		hostname elsewhere; hostname
		ls /sys/class/net; ! touch /sys/x 2>/dev/null`)
	cmd.Sandbox = &Sandbox{Empty: []string{"/run", "/no/such/folder"}, Scratch: []string{"/etc"}, OwnSys: true}
	before, _ := os.ReadFile("/etc/resolv.conf")
	hostBefore, _ := os.Hostname()
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "private\nelsewhere\nlo\n" {
		t.Errorf("%v: %q", err, out)
	}
	after, _ := os.ReadFile("/etc/resolv.conf")
	hostAfter, _ := os.Hostname()
	if !bytes.Equal(before, after) || hostBefore != hostAfter {
		t.Error("the sandbox changed the host")
	}
	if _, err := os.Stat("/run/x"); err == nil {
		t.Error("the sandbox wrote to the host's /run")
	}
}

func TestProcessLife(t *testing.T) {
	t.Parallel()
	Require(t, Root)
	n := Namespace(t, "proc")
	p := Start(t, n.Command("sh", "-c", `sleep 300 & echo child $!; trap 'echo bye; exit 7' TERM; while :; do sleep 0.05; done`))
	p.WaitOutput(t, `child \d+`, 1, 5*time.Second)
	if _, err := p.Wait(10 * time.Millisecond); !errors.Is(err, ErrTimeout) {
		t.Errorf("wait: %v", err)
	}
	if code := p.Stop(t); code != 7 {
		t.Errorf("exit code %d", code)
	}
	if !strings.HasSuffix(p.Output(), "bye\n") {
		t.Errorf("output %q", p.Output())
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
	gone := func() bool { return errors.Is(unix.Kill(-p.Pid(), 0), unix.ESRCH) }
	Eventually(t, 5*time.Second, "the child is killed with its group", gone)
}

func TestCommandContextKillsTheGroup(t *testing.T) {
	t.Parallel()
	Require(t, Root)
	p := &Program{Bin: "/bin/sh", NS: Namespace(t, "ctx"), Timeout: 200 * time.Millisecond}
	start := time.Now()
	if _, err := p.Run("-c", "sleep 60 & sleep 60"); !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	r, err := p.Run("-c", "echo out; echo err >&2; exit 3")
	if err != nil || r.Code != 3 || r.Stdout != "out\n" || r.Stderr != "err\n" {
		t.Errorf("%v, %+v", err, r)
	}
}

func TestProgramFlags(t *testing.T) {
	t.Parallel()
	p := &Program{StateDir: "D", Socket: "S"}
	for in, want := range map[string]string{
		"run --audit":              "run --state-dir D --socket S --audit",
		"status --json":            "status --socket S --json",
		"hook openvpn --require":   "hook openvpn --socket S --require",
		"recover":                  "recover --state-dir D",
		"release":                  "release --state-dir D --socket S",
		"explain 10.0.0.1 --tos 4": "explain --socket S 10.0.0.1 --tos 4",
		"plan --tunnel tun0":       "plan --tunnel tun0",
		"":                         "",
	} {
		if got := strings.Join(p.Args(strings.Fields(in)...), " "); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestRouteGetAndSnapshot(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	before := a.MainTable(t)
	a.IP(t, "route add 172.31.0.0/16 via 10.9.0.2")
	a.IP(t, "route add 172.31.0.0/16 tos 0x10 dev lo")
	a.IP(t, "route add unreachable 10.200.0.0/16")
	a.IP(t, "route add prohibit 10.201.0.0/16")
	a.IP(t, "route add blackhole 10.202.0.0/16")
	a.IP(t, "-6 route add fd31::/48 via fd09::2")

	hop, err := a.RouteGet(addr("172.31.1.1"), 0)
	if err != nil || hop.Device != "eth0" || hop.Gateway != addr("10.9.0.2") || hop.Src != addr("10.9.0.1") || hop.Table != unix.RT_TABLE_MAIN {
		t.Errorf("%+v, %v", hop, err)
	}
	if hop, err := a.RouteGet(addr("172.31.1.1"), 0x10); err != nil || hop.Device != "lo" {
		t.Errorf("with TOS: %+v, %v", hop, err)
	}
	if hop, err := a.RouteGet(addr("fd31::1"), 0); err != nil || hop.Device != "eth0" || hop.Gateway != addr("fd09::2") {
		t.Errorf("IPv6: %+v, %v", hop, err)
	}
	if hop, err := a.RouteGet(addr("10.9.0.1"), 0); err != nil || hop.Type != unix.RTN_LOCAL || hop.Device != "lo" {
		t.Errorf("own address: %+v, %v", hop, err)
	}
	for dst, want := range map[string]syscall.Errno{
		"10.200.0.1": unix.EHOSTUNREACH, "10.201.0.1": unix.EACCES, "10.202.0.1": unix.EINVAL, "8.8.8.8": unix.ENETUNREACH,
	} {
		if _, err := a.RouteGet(addr(dst), 0); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", dst, err, want)
		}
	}
	if got := a.DeviceTo(addr("8.8.8.8")); got != "network is unreachable" {
		t.Errorf("DeviceTo: %q", got)
	}
	if a.MainTable(t) == before {
		t.Error("the snapshot has not changed")
	}
	for _, r := range []string{"172.31.0.0/16 tos 0", "172.31.0.0/16 tos 0x10", "unreachable 10.200.0.0/16", "prohibit 10.201.0.0/16", "blackhole 10.202.0.0/16", "fd31::/48"} {
		a.IP(t, "route del "+r)
	}
	if got := a.MainTable(t); got != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, got)
	}
}

func TestRoutesHideLifetimes(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	a.IP(t, "-6 route add fd55::/64 via fd09::2 expires 100")
	if got := a.MainTable(t); !strings.Contains(got, "expires Nsec") {
		t.Error(got)
	}
}

func TestLinks(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	if ll := a.LinkLocal(t, "eth0"); !ll.IsLinkLocalUnicast() {
		t.Errorf("link-local %v", ll)
	}
	a.LinkDown(t, "eth0")
	if got := a.DeviceTo(addr("10.9.0.2")); got == "eth0" {
		t.Error("still routed over a link that is down")
	}
	a.LinkUp(t, "eth0")
	a.AddAddr(t, "eth0", Prefixes("10.9.1.1/24")...)
	if got := a.DeviceTo(addr("10.9.1.7")); got != "eth0" {
		t.Errorf("to the new network: %s", got)
	}
	a.LinkDel(t, "eth0")
	if a.HasLink("eth0") || b.HasLink("eth0") {
		t.Error("deleting one end leaves a link")
	}
}

// TestNamesBesideThoseOfIP: the first "ip netns add" of a machine mounts the
// folder on itself, which would hide the names that are there.
func TestNamesBesideThoseOfIP(t *testing.T) {
	Require(t, Root, IPRoute, "unshare")
	if os.Getenv("TESTENV_FRESH") == "" {
		cmd := exec.Command("unshare", "-m", "sh", "-c", `mount -t tmpfs none /run && exec "$0" -test.run '^TestNamesBesideThoseOfIP$'`, os.Args[0])
		cmd.Env = append(os.Environ(), "TESTENV_FRESH=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	n, err := NewNS("first")
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"add", "del"} {
		if out, err := exec.Command("ip", "netns", what, "second").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if names, _ := filepath.Glob(netnsDir + "/*"); len(names) > 0 {
		t.Errorf("still there: %v", names)
	}
}
