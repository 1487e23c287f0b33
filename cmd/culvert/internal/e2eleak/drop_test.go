//go:build linux

package e2eleak

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// flood starts two talkers that leak as fast as they can by sockets bound to the
// interface, which ask no route of main.
func (s *stub) flood(t *testing.T) []*testenv.Process {
	t.Helper()
	say := speech{dst: "172.31.1.10", device: "eth0"}
	return []*testenv.Process{say.start(t, s.Client), say.start(t, s.Client)}
}

// TestDrop: not one packet gets out through the daemon's whole life: policy
// changes, kill -9, restarts that adopt, and until it is stopped in order.
func TestDrop(t *testing.T) {
	needs(t)
	s := newStub(t)
	flags := []string{"--on-leak", "drop"}
	d := s.daemon(t, flags...)
	c := s.Leaks(t, filter("172.31.0.0/16"))
	talkers := s.flood(t)
	before := s.settled(t, 100)
	for i := range 3 {
		s.prog.Must(t, "up", "--tunnel", "tun0", "--protect", sites+fmt.Sprintf(",10.%d.0.0/16", i+1))
		d.Kill()
		time.Sleep(100 * time.Millisecond)
		d = s.daemon(t, flags...)
		st := s.status(t)
		if !st.Witness.Adopted || st.Witness.Guard == "" || st.Witness.Mode != "drop" || st.Leaks.Packets < before.Packets {
			t.Errorf("restart %d: the guard was not taken over with its counts (%d before): %+v, %+v", i, before.Packets, st.Witness, st.Leaks.totals)
		}
		before = st.Leaks.totals
	}
	if n := c.Packets(); n != 0 {
		t.Errorf("%d packets got out", n)
	}
	list := s.table(t)
	if list.Dropped != list.Packets || list.Packets == 0 {
		t.Errorf("of %d leaks %d were dropped", list.Packets, list.Dropped)
	}
	t.Logf("%d packets tried to leave", list.Packets)
	stopped(t, d) // the operator ends it: leaks are free again
	if c.Wait(1, patience); c.Packets() == 0 {
		t.Error("nothing gets out without culvert either: nothing is proved")
	}
	for _, p := range talkers {
		p.Stop(t)
	}
}

// TestHandover: nothing gets out while one daemon takes the place of another, as
// "systemctl restart" does it, and what was removed stays out.
func TestHandover(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.Client.IP(t, "route add 172.31.2.0/24 via 10.77.0.66")
	d := s.daemon(t, "--on-leak", "drop")
	table := s.Client.MainTable(t)
	c := s.Leaks(t, filter("172.31.0.0/16"))
	talkers := s.flood(t)
	for range 3 {
		before := s.settled(t, 100)
		if err := d.Signal(syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		if code, err := d.Wait(patience); code != 0 || err != nil {
			t.Fatalf("exit code %d, %v:\n%s", code, err, d.Output())
		}
		if got := s.Client.MainTable(t); got != table {
			t.Errorf("between two daemons the table is\n%s\nwant\n%s", got, table)
		}
		d = s.daemon(t, "--on-leak", "drop")
		if st := s.status(t); !st.Witness.Adopted || st.Leaks.Packets < before.Packets {
			t.Errorf("the drops were not taken over with their counts (%d before): %+v, %+v", before.Packets, st.Witness, st.Leaks.totals)
		}
	}
	if n := c.Packets(); n != 0 {
		t.Errorf("%d packets got out", n)
	}
	stopped(t, d)
	if c.Wait(1, patience); c.Packets() == 0 {
		t.Error("nothing gets out without culvert either: nothing is proved")
	}
	for _, p := range talkers {
		p.Stop(t)
	}
}

// TestReload: the configuration is read again and again under traffic that would
// leak, by SIGHUP and by the command. What stays in it is protected throughout: not
// one packet gets out.
func TestReload(t *testing.T) {
	needs(t)
	s := newStub(t)
	file := filepath.Join(t.TempDir(), "culvert.yaml")
	write := func(more string) {
		text := "on_leak: drop\nsessions:\n- tunnel: tun0\n  protect: [172.31.0.0/16, fd31::/48" + more + "]\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	d := s.prog.Daemon(t, "--config", file)
	s.enforcing(t)
	c := s.Leaks(t, filter("172.31.0.0/16"))
	talkers := s.flood(t)
	s.settled(t, 100)
	for i := range 6 {
		if i%3 == 2 {
			write(", 10.0.0.1/8") // host bits: refused whole
		} else {
			write(fmt.Sprintf(", 10.%d.0.0/16", i))
		}
		before := strings.Count(d.Output(), "reloaded")
		if i%2 == 0 {
			_ = d.Signal(syscall.SIGHUP)
		} else {
			s.prog.Exec(t, "reload") // its exit code is the scripts' to test
		}
		testenv.Eventually(t, patience, "the reload", func() bool { return strings.Count(d.Output(), "reloaded") > before })
		st := s.status(t)
		if len(st.Sessions) != 1 || st.Sessions[0].State != "enforcing" || st.Witness.Mode != "drop" {
			t.Errorf("reload %d: %+v, %+v", i, st.Sessions, st.Witness)
		}
		s.settled(t, st.Leaks.Packets+100) // they go on trying
	}
	if n := c.Packets(); n != 0 {
		t.Errorf("%d packets got out", n)
	}
	if n := strings.Count(d.Output(), "configuration reloaded"); n != 4 {
		t.Errorf("%d of 4 good files were taken:\n%s", n, d.Output())
	}
	list := s.table(t)
	if list.Dropped != list.Packets || list.Packets < 600 {
		t.Errorf("of %d leaks %d were dropped", list.Packets, list.Dropped)
	}
	for _, p := range talkers {
		p.Stop(t)
	}
	stopped(t, d)
}

// TestRelease: what a killed daemon left is taken down by hand, and what it had
// removed comes back.
func TestRelease(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.Client.IP(t, "route add 172.31.2.0/24 via 10.77.0.66")
	before := s.Client.MainTable(t)
	d := s.daemon(t, "--on-leak", "drop")
	c := s.Leaks(t, filter("172.31.1.10"))
	talkers := s.flood(t)
	s.settled(t, 10)
	release := []string{"release", "--socket", s.prog.Socket, "--state-dir", s.prog.StateDir}
	if r := s.prog.Exec(t, release...); r.Code != 1 || !strings.Contains(r.Stderr, "no guard holds now") {
		t.Errorf("with a daemon whose tunnel stands: %s", r)
	}
	own := s.status(t).Witness.Guard
	for _, folder := range []string{own, "/nowhere"} {
		if r := s.prog.Exec(t, "release", "--guard", folder); r.Code != 64 || !strings.Contains(r.Stderr, folder) {
			t.Errorf("--guard %s: %s", folder, r)
		}
	}
	d.Kill()
	time.Sleep(200 * time.Millisecond)
	if n := c.Packets(); n != 0 {
		t.Errorf("%d packets got out before the release", n)
	}
	if out := s.prog.Must(t, release...); !strings.Contains(out, "172.31.2.0/24 via 10.77.0.66") {
		t.Errorf("release says %q", out)
	}
	if c.Wait(1, patience); c.Packets() == 0 {
		t.Error("the guard still drops after its release")
	}
	if got := s.Client.MainTable(t); got != before {
		t.Errorf("the table is\n%s\nwant\n%s", got, before)
	}
	s.prog.Must(t, release...) // nothing there is a success
	for _, p := range talkers {
		p.Stop(t)
	}
}

// TestGuardOpenVPN: OpenVPN is killed, and comes back. Meanwhile nothing leaves
// but what looks for the server. Without a guard it does.
func TestGuardOpenVPN(t *testing.T) {
	for _, tt := range []struct {
		name, onLoss string
		killed       bool // the daemon, at the same time
	}{
		{"guard", "guard", false},
		{"guard, daemon killed too", "guard", true},
		{"control", "restore", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needs(t, testenv.OpenVPN)
			l := testenv.NewLab(t, testenv.LabOptions{})
			g := &guarded{rig: rig{l.Client, testenv.NewProgram(t, l.Client, "")}, Lab: l, onLoss: tt.onLoss}
			to := filter(testenv.TargetAddr.String())
			leaked, arrived := l.Leaks(t, to), l.Arrived(t, to)
			g.start(t)
			vpn := g.connect(t)
			talking := speech{dst: testenv.TargetAddr.String()}.start(t, l.Client)
			arrived.Wait(100, patience)
			g.lose(t, vpn, tt.killed)
			again := g.connect(t)
			n := arrived.Packets()
			if got := arrived.Wait(n+100, patience); got.Packets < n+100 {
				t.Errorf("the tunnel is back, and carries nothing: %d packets, then %d", n, got.Packets)
			}
			talking.Stop(t)
			leaked.Settle(200 * time.Millisecond)
			g.judge(t, exact(t, leaked))
			again.Stop(t)
			if st := g.status(t); len(st.Sessions) != 0 || st.Witness.Guard != "" {
				t.Errorf("after an orderly disconnect: %+v, %+v", st.Sessions, st.Witness)
			}
			stopped(t, g.daemon)
		})
	}
}

// guarded is a lab whose OpenVPN gets lost.
type guarded struct {
	rig
	*testenv.Lab
	onLoss string
	daemon *testenv.Process
}

func (g *guarded) start(t *testing.T) { g.daemon = g.prog.Daemon(t, "--on-loss", g.onLoss) }

func (g *guarded) connect(t *testing.T) *testenv.VPN {
	t.Helper()
	c := g.VPNClient()
	c.Hooks = hooks(g.prog)
	vpn := c.Start(t)
	vpn.WaitUp(t, 1)
	g.enforcing(t)
	return vpn
}

// lose kills OpenVPN, and the daemon if told to, which is then started again.
func (g *guarded) lose(t *testing.T, vpn *testenv.VPN, killed bool) {
	t.Helper()
	vpn.Kill()
	if killed {
		g.daemon.Kill()
	}
	testenv.Eventually(t, patience, "the tunnel is gone", func() bool { return !g.Client.HasLink("tun0") })
	time.Sleep(300 * time.Millisecond)
	if killed {
		g.start(t)
	}
	if g.onLoss == "guard" {
		testenv.Eventually(t, patience, "the guard holds", func() bool {
			return strings.Join(g.status(t).Witness.Holding, " ") == "tun0"
		})
	}
}

// judge wants nothing to have leaked under a guard, and something without.
func (g *guarded) judge(t *testing.T, leaked testenv.Count) {
	t.Helper()
	if g.onLoss != "guard" { // the session ended with the tunnel, and the counting with it
		if leaked.Packets == 0 {
			t.Error("control: nothing leaked without a guard")
		}
		return
	}
	list := g.table(t)
	if leaked.Packets != 0 {
		t.Errorf("%d packets leaked", leaked.Packets)
	}
	if list.Packets == 0 || list.Dropped != list.Packets {
		t.Errorf("of %d packets that would have leaked %d were dropped: %+v", list.Packets, list.Dropped, list.By)
	}
}

// TestGuardStays: a guard outlives an orderly stop too, for the next daemon to
// take over: that is an upgrade. Its session is the daemon's own.
func TestGuardStays(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.daemon(t, "--on-loss", "guard")
	c := s.Leaks(t, filter("172.31.1.10"))
	if err := s.Tun.Close(); err != nil {
		t.Fatal(err)
	}
	talking := speech{dst: "172.31.1.10"}.start(t, s.Client)
	s.settled(t, 10)
	stopped(t, d)
	time.Sleep(100 * time.Millisecond)
	d = s.prog.Daemon(t, "--on-loss", "guard", "--tunnel", "tun0", "--protect", sites)
	testenv.Eventually(t, patience, "the guard is taken over", func() bool { return len(s.status(t).Witness.Holding) == 1 })
	before := s.leaked(t)
	s.settled(t, before.Packets+10)
	if n := c.Packets(); n != 0 {
		t.Errorf("%d packets got out", n)
	}
	out := s.prog.Must(t, "release", "--socket", s.prog.Socket, "--state-dir", s.prog.StateDir)
	if !strings.Contains(out, "tun0: released") {
		t.Errorf("release says %q", out)
	}
	if c.Wait(1, patience); c.Packets() == 0 {
		t.Error("the guard still drops after its release")
	}
	talking.Stop(t)
	stopped(t, d)
}

// TestTwoGuards: two tunnels are gone, and what either protects is dropped.
func TestTwoGuards(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.LAN.AddAddr(t, "eth0", testenv.Prefixes("172.30.1.10/32")...)
	second := testenv.OpenTun(t, s.Client, "tun1", testenv.Prefixes("10.89.0.2/24")...)
	s.Client.IP(t, "route add 172.30.0.0/16 dev tun1")
	d := s.daemon(t, "--on-loss", "guard")
	s.prog.Must(t, "up", "--socket", s.prog.Socket, "--tunnel", "tun1", "--protect", "172.30.0.0/16")
	for _, tun := range []*testenv.Tun{s.Tun, second} {
		if err := tun.Close(); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, patience, "both are gone", func() bool {
		st := s.status(t)
		return len(st.Sessions) == 2 && st.Sessions[0].State == "reconnecting" && st.Sessions[1].State == "reconnecting"
	})
	for i, dst := range []string{"172.31.1.10", "172.30.1.10"} {
		c := s.Leaks(t, filter(dst))
		speech{dst: dst, count: 30, pause: time.Millisecond}.say(t, s.Client)
		c.Settle(200 * time.Millisecond)
		if n := c.Packets(); n != 0 {
			t.Errorf("%d packets to %s got out", n, dst)
			continue
		}
		if got := s.settled(t, 30*(i+1)); got.Packets < 30*(i+1) || got.Dropped != got.Packets {
			t.Errorf("to %s: %+v", dst, got)
		}
	}
	s.prog.Must(t, "release", "--socket", s.prog.Socket, "--state-dir", s.prog.StateDir)
	stopped(t, d)
}

// TestDeadline: a guard ends when it was told to, with the daemon and without,
// and the routes that it kept out come back.
func TestDeadline(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon killed %t", killed), func(t *testing.T) {
			needs(t)
			s := newStub(t)
			s.Client.IP(t, "route add 172.31.1.0/24 via 10.77.0.66")
			d := s.daemon(t, "--on-loss", "guard", "--guard-for", "3s")
			c := s.Leaks(t, filter("172.31.1.10"))
			talking := speech{dst: "172.31.1.10"}.start(t, s.Client)
			start := time.Now()
			if killed {
				d.Kill()
			}
			if err := s.Tun.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if n := c.Packets(); n != 0 {
				t.Errorf("%d packets got out while the guard should hold", n)
			}
			if c.Wait(1, patience); c.Packets() == 0 {
				t.Fatal("the guard never ends")
			}
			if took := time.Since(start); took < 2*time.Second || took > 10*time.Second {
				t.Errorf("a guard of 3 s lasted %v", took)
			}
			if !killed {
				testenv.Eventually(t, patience, "the held route", func() bool { return strings.Contains(s.Client.MainTable(t), "172.31.1.0/24") })
				stopped(t, d)
			}
			talking.Stop(t)
			s.prog.Must(t, "release", "--socket", s.prog.Socket, "--state-dir", s.prog.StateDir)
		})
	}
}

// TestAudit: everything is counted, nothing is changed, even where leaks are to
// be dropped.
func TestAudit(t *testing.T) {
	needs(t)
	s := newStub(t)
	s.Client.IP(t, "route add 172.31.1.0/24 via 10.77.0.66")
	before := s.Client.MainTable(t)
	d := s.prog.Daemon(t, "--audit", "--on-leak", "drop", "--on-loss", "guard", "--tunnel", "tun0", "--protect", sites)
	testenv.Eventually(t, patience, "auditing", func() bool { st := s.status(t); return len(st.Sessions) == 1 && st.Sessions[0].State == "auditing" })
	c := s.Leaks(t, filter("172.31.1.10"))
	speech{dst: "172.31.1.10", count: 30, pause: time.Millisecond}.say(t, s.Client)
	c.Wait(30, patience)
	got := s.settled(t, 30)
	same(t, "audit", exact(t, c), got)
	if got.Dropped != 0 {
		t.Errorf("%d dropped by an audit", got.Dropped)
	}
	st := s.status(t)
	if in := st.Incidents[0]; in.What != "reported" || in.Packets == nil || *in.Packets != 30 || len(in.Senders) != 1 || in.Senders[0].Process != talker {
		t.Errorf("the incident says %+v", in)
	}
	if st.Witness.Mode != "count" || st.Witness.Guard != "" {
		t.Errorf("the witness says %+v", st.Witness)
	}
	if after := s.Client.MainTable(t); after != before {
		t.Errorf("the table is\n%s\nwant\n%s", after, before)
	}
	stopped(t, d)
}

// TestNoWitness: culvert works without, and says so; it does not start where
// that would leave a promise unkept.
func TestNoWitness(t *testing.T) {
	needs(t, "setpriv")
	s := newStub(t)
	bare := *s.prog
	bare.Bin = "setpriv"
	less := []string{"--bounding-set=-bpf,-perfmon,-sys_admin", s.prog.Bin}
	run := func(args ...string) []string { return append(append(less, "run"), args...) }
	paths := []string{"--state-dir", s.prog.StateDir, "--socket", s.prog.Socket, "--tunnel", "tun0", "--protect", sites}

	for _, flags := range [][]string{{"--on-leak", "drop"}, {"--on-loss", "guard"}, {"--witness", "require"}} {
		r := bare.Exec(t, run(append(paths, flags...)...)...)
		if r.Code != 4 || !strings.Contains(r.Stderr, "is unavailable") || !strings.Contains(r.Stderr, "CAP_BPF") || strings.Count(r.Stderr, "culvert: ") != 1 {
			t.Errorf("%v without CAP_BPF: %s", flags, r)
		}
	}
	d := testenv.Start(t, bare.Command(run(paths...)...))
	testenv.Eventually(t, patience, "the socket", s.prog.Answers)
	s.enforcing(t)
	st := s.status(t)
	if st.Witness.Mode != "off" || !strings.Contains(st.Witness.Reason, "CAP_BPF") || st.Leaks != nil {
		t.Errorf("without CAP_BPF: %+v, leaks %+v", st.Witness, st.Leaks)
	}
	stopped(t, d)

	d = s.daemon(t, "--witness", "off")
	s.Client.IP(t, "route add 172.31.1.0/24 via 10.77.0.66 proto dhcp")
	testenv.Eventually(t, patience, "the removal", func() bool { return s.status(t).Sessions[0].Removed == 1 })
	st = s.status(t)
	if st.Witness.Mode != "off" || st.Leaks != nil || st.Incidents[0].Packets != nil {
		t.Errorf("--witness off: %+v", st)
	}
	if r := s.prog.Exec(t, "leaks", "--socket", s.prog.Socket); r.Code != 1 || !strings.Contains(r.Stdout, "not watched") {
		t.Errorf("culvert leaks: %s", r)
	}
	stopped(t, d)
}

// TestWatch: what happens is printed as it happens.
func TestWatch(t *testing.T) {
	needs(t)
	s := newStub(t)
	d := s.daemon(t)
	text := testenv.Start(t, s.prog.Command("watch", "--socket", s.prog.Socket))
	lines := testenv.Start(t, s.prog.Command("watch", "--json", "--socket", s.prog.Socket))
	time.Sleep(300 * time.Millisecond)
	speech{dst: "172.31.1.10", device: "eth0", count: 5}.say(t, s.Client)
	s.Client.IP(t, "route add 172.31.1.0/24 via 10.77.0.66 proto dhcp")
	text.WaitOutput(t, `tun0 [15] packets? .* leaked: from `+talker+` \(process \d+, user 0\).* to 172.31.1.10:5000 by eth0: SO_BINDTODEVICE eth0`, 1, patience)
	text.WaitOutput(t, `tun0 removed 172.31.1.0/24 via 10.77.0.66 dev eth0 proto dhcp: .*; no packet leaked`, 1, patience)
	lines.WaitOutput(t, `(?m)^\{"time":.*"kind":"leak".*"mechanism":"bound"`, 1, patience)
	lines.WaitOutput(t, `(?m)^\{"time":.*"kind":"incident".*"packets":0`, 1, patience)
	if err := text.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code, err := text.Wait(patience); code != 0 || err != nil {
		t.Errorf("ended by SIGINT: %d, %v", code, err)
	}
	stopped(t, d)
	if code, err := lines.Wait(patience); code != 3 || err != nil {
		t.Errorf("the daemon ended: %d, %v", code, err)
	}
}
