//go:build linux

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// unit is the systemd unit that is shipped.
const unit = "../../packaging/culvert.service"

// unitCaps are the capabilities that the unit grants, as setpriv names them.
func unitCaps(t *testing.T) (names []string, mask uint64) {
	t.Helper()
	numbers := map[string]int{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_BPF": unix.CAP_BPF, "CAP_PERFMON": unix.CAP_PERFMON}
	b, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		list, ok := strings.CutPrefix(strings.TrimSpace(line), "CapabilityBoundingSet=")
		if !ok {
			continue
		}
		for _, word := range strings.Fields(list) {
			n, known := numbers[word]
			if !known {
				t.Fatalf("%s grants %s, of which this test knows nothing", unit, word)
			}
			names, mask = append(names, "+"+strings.ToLower(strings.TrimPrefix(word, "CAP_"))), mask|1<<n
		}
	}
	return names, mask
}

// TestUnitsCapabilities: with the capabilities of the unit, and no way to more,
// everything works: conflicts of both families, the witness, drops, hooks, a
// kill, recover and restoring.
func TestUnitsCapabilities(t *testing.T) {
	needs(t, "setpriv")
	names, mask := unitCaps(t)
	s := newStub(t)
	s.ip(t, "route add 172.31.1.0/24 via 10.77.0.66\n-6 route add fd31:0:0:1::/64 via fd77::66")
	before := s.Client.MainTable(t)
	priv := []string{"--no-new-privs", "--bounding-set", "-all," + strings.Join(names, ","), "--inh-caps", "-all"}
	run := func(args ...string) *testenv.Cmd {
		return s.Client.Command("setpriv", append(append(priv, s.prog.Bin), args...)...)
	}
	start := func() *testenv.Process {
		t.Helper()
		d := testenv.Start(t, run(s.prog.Args("run", "--tunnel", "tun0", "--protect", sites, "--witness", "require", "--on-leak", "drop")...))
		testenv.Eventually(t, long, "the daemon", func() bool { return s.prog.Answers() || !d.Running() })
		enforcing(t, s.prog)
		return d
	}
	d := start()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{fmt.Sprintf("CapEff:\t%016x", mask), fmt.Sprintf("CapBnd:\t%016x", mask), "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), line+"\n") {
			t.Errorf("control: no %q in\n%s", line, status)
		}
	}
	for _, dst := range []string{site, site6} {
		if in, out := s.burst(t, dst); in != burst || out != 0 {
			t.Errorf("of %d packets to %s %d left and %d entered the tunnel", burst, dst, out, in)
		}
	}
	s.again(t)
	s.Client.AddAddr(t, "eth0", testenv.Prefixes("172.31.7.1/24")...)
	if !eventually(func() bool { return !strings.Contains(s.Client.MainTable(t), "unicast 172.31.7.0/24") }) {
		t.Errorf("a new address's route stays:\n%s", s.Client.MainTable(t))
	}
	s.ip(t, "addr del 172.31.7.1/24 dev eth0")
	d.Kill()
	if out, err := run(s.prog.Args("recover")...).CombinedOutput(); err != nil {
		t.Fatalf("recover: %v: %s", err, out)
	}
	sameTable(t, s.Client, "after a kill and recover", before)
	stopped(t, start())
	sameTable(t, s.Client, "after the end", before)
}
