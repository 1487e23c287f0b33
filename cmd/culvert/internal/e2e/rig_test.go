//go:build linux

package e2e

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// patience is how long something may take on a busy machine.
const patience = 10 * time.Second

// burst is how many packets are sent to see where they go.
const burst = 40

// status is the document of "culvert status --json", as its help describes it.
type status struct {
	Version  int `json:"version"`
	Sessions []struct {
		Tunnel    string   `json:"tunnel"`
		State     string   `json:"state"`
		Error     string   `json:"error"`
		Protected []string `json:"protected"`
		Excluded  []string `json:"excluded"`
		Removed   int      `json:"removed"`
		Readded   int      `json:"readded"`
		Restored  int      `json:"restored"`
		Held      []struct {
			Route string    `json:"route"`
			Since time.Time `json:"since"`
		} `json:"held"`
		Contested []struct {
			Route string `json:"route"`
			Times int    `json:"times"`
			By    adder  `json:"by"`
		} `json:"contested"`
		Unenforceable []string `json:"unenforceable"`
		Notes         []string `json:"notes"`
	} `json:"sessions"`
	Incidents []struct {
		Tunnel  string    `json:"tunnel"`
		What    string    `json:"what"`
		Route   string    `json:"route"`
		Reason  string    `json:"reason"`
		By      adder     `json:"by"`
		Seen    time.Time `json:"seen"`
		Gone    time.Time `json:"gone"`
		Exposed int       `json:"exposed_us"`
		Path    string    `json:"path"`
		Error   string    `json:"error"`
	} `json:"incidents"`
}

type adder struct {
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
	Process  string `json:"process"`
}

// statusOf asks the daemon, whatever the exit code says.
func statusOf(t testenv.TB, p *testenv.Program) status {
	t.Helper()
	r := p.Exec(t, "status", "--json")
	var st status
	if err := json.Unmarshal([]byte(r.Stdout), &st); err != nil || st.Version != 1 {
		t.Fatalf("culvert status --json: %v: %s", err, r)
	}
	return st
}

// removed is how many conflicts all sessions have removed.
func (st status) removed() (n int) {
	for _, s := range st.Sessions {
		n += s.Removed
	}
	return n
}

// incident finds the last incident of a kind that names a route.
func (st status) incident(what, route string) (reason string, by adder, ok bool) {
	for _, in := range st.Incidents {
		if in.What == what && (route == "" || hasWords(in.Route, route)) {
			reason, by, ok = in.Reason, in.By, true
		}
	}
	return reason, by, ok
}

// enforcing waits until every session is enforcing.
func enforcing(t testenv.TB, p *testenv.Program) {
	t.Helper()
	p.Must(t, "status", "--wait", patience.String())
}

// marked is a burst of packets that no other traffic is mistaken for.
func marked(dst netip.Addr) (testenv.Blast, testenv.Filter) {
	f := testenv.To(dst.String())
	f.Proto, f.Port, f.Marker = unix.IPPROTO_UDP, 5000, "secret"
	return testenv.Blast{Dst: netip.AddrPortFrom(dst, 5000), Count: burst, Rate: 4000, Marker: "secret"}, f
}

// counted ends a counter and insists on an exact count.
func counted(t testenv.TB, c *testenv.Counter) int {
	t.Helper()
	got, err := c.Stop()
	if err != nil || got.Lost > 0 {
		t.Errorf("counter: %v, %v", got, err)
	}
	return int(got.Packets)
}

// settled returns a counter's number once it has reached want or stopped rising.
func settled(t testenv.TB, c *testenv.Counter, want int) int {
	t.Helper()
	if want > 0 {
		c.Wait(uint64(want), patience)
	}
	return counted(t, c)
}

// leaves checks, with time to get there, by which interface the kernel would
// send to an address.
func leaves(t testenv.TB, n *testenv.NS, dst netip.Addr, want string) {
	t.Helper()
	if !testenv.Until(patience, func() bool { return n.DeviceTo(dst) == want }) {
		t.Errorf("%s leaves by %s, want %s\n%s", dst, n.DeviceTo(dst), want, n.MainTable(t))
	}
}

// sameTable compares the main table with an earlier one, with time to get there.
func sameTable(t testenv.TB, n *testenv.NS, when, want string) {
	t.Helper()
	if !testenv.Until(patience, func() bool { return n.MainTable(t) == want }) {
		t.Errorf("the main table %s is\n%s\nwant\n%s", when, n.MainTable(t), want)
	}
}

// stopped ends a daemon in order.
func stopped(t testenv.TB, d *testenv.Process) {
	t.Helper()
	if code := d.Stop(t); code != 0 {
		t.Errorf("culvert run ended with %d:\n%s", code, d.Output())
	}
}

// lab is a testenv.Lab with the program in its client.
type lab struct {
	*testenv.Lab
	prog *testenv.Program
}

func newLab(t *testing.T, opts testenv.LabOptions) *lab {
	t.Helper()
	l := testenv.NewLab(t, opts)
	return &lab{Lab: l, prog: testenv.NewProgram(t, l.Client, "")}
}

// protects sends a burst to each destination and checks that all of it arrives
// through the tunnel, and that none leaves the client outside it.
func (l *lab) protects(t testenv.TB, when string, dsts ...netip.Addr) {
	t.Helper()
	for _, dst := range dsts {
		if in, out, stolen := l.send(t, dst, burst, 0); in != burst || out != 0 || stolen != 0 {
			t.Errorf("%s: of %d packets to %s %d arrived, %d leaked, %d were stolen", when, burst, dst, in, out, stolen)
		}
	}
}

// loses is the control: without culvert the attacker gets it all.
func (l *lab) loses(t testenv.TB, when string, dsts ...netip.Addr) {
	t.Helper()
	for _, dst := range dsts {
		if in, out, stolen := l.send(t, dst, 0, burst); in != 0 || out != burst || stolen != burst {
			t.Errorf("%s: control: of %d packets to %s %d arrived, %d leaked, %d were stolen", when, burst, dst, in, out, stolen)
		}
	}
}

// send returns how many packets arrived through the tunnel, left the client
// outside it, and came to the attacker.
func (l *lab) send(t testenv.TB, dst netip.Addr, wantIn, wantOut int) (in, out, stolen int) {
	t.Helper()
	blast, filter := marked(dst)
	arrived, leaks, rogue := l.Arrived(t, filter), l.Leaks(t, filter), l.Stolen(t, filter)
	l.Client.Send(t, blast)
	return settled(t, arrived, wantIn), settled(t, leaks, wantOut), settled(t, rogue, wantOut)
}

// stub is a testenv.Stub with the program in its client, and the routes that a
// VPN client would have made.
type stub struct {
	*testenv.Stub
	prog *testenv.Program
}

// sites are the protected prefixes of a stub.
const sites = "172.31.0.0/16,fd31::/48"

func newStub(t testenv.TB) *stub {
	t.Helper()
	s := testenv.NewStub(t)
	// Whoever is asked for on the LAN answers, so that what leaks is seen there.
	s.LAN.AddAddr(t, "eth0", testenv.Prefixes("172.31.1.10/32", "192.0.2.1/32", "fd31:0:0:1::10/128")...)
	s.Client.IP(t, "route add 172.31.0.0/16 dev tun0")
	s.Client.IP(t, "-6 route add fd31::/48 dev tun0")
	return &stub{Stub: s, prog: testenv.NewProgram(t, s.Client, "")}
}

// daemon starts the program with a session on the stub's tunnel, and waits
// until it has judged the table.
func (s *stub) daemon(t testenv.TB, args ...string) *testenv.Process {
	t.Helper()
	d := s.prog.Daemon(t, append([]string{"--tunnel", "tun0", "--protect", sites}, args...)...)
	enforcing(t, s.prog)
	return d
}

// packets sends a burst and returns how many entered the tunnel and how many
// left outside it.
func (s *stub) packets(t testenv.TB, dst netip.Addr, tos uint8) (in, out int) {
	t.Helper()
	blast, filter := marked(dst)
	blast.TOS = tos
	tunnel, leaks := s.Tun.Count(filter), s.Leaks(t, filter)
	sent := s.Client.Send(t, blast)
	testenv.Until(patience, func() bool { return int(tunnel.Packets()+leaks.Packets()) >= sent.Packets })
	return counted(t, tunnel), counted(t, leaks)
}

// eventually waits for something for as long as it may take.
func eventually(cond func() bool) bool { return testenv.Until(patience, cond) }
