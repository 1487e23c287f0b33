//go:build linux

package e2eleak

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/testenv"
)

// patience is how long something may take on a busy machine.
const patience = 20 * time.Second

// settling is how long what should not come is waited for.
const settling = time.Second

// totals are sums as every part of the document has them.
type totals struct {
	Packets int `json:"packets"`
	Bytes   int `json:"bytes"`
	Dropped int `json:"dropped"`
}

type sender struct {
	totals
	Process string `json:"process"`
	PID     int    `json:"pid"`
	UID     int    `json:"uid"`
	Origin  string `json:"origin"`
	Ingress string `json:"ingress"`
	Source  string `json:"source"`
}

type finding struct {
	sender
	Tunnel    string `json:"tunnel"`
	To        string `json:"to"`
	Interface string `json:"interface"`
	Mechanism string `json:"mechanism"`
	Why       string `json:"why"`
	Incident  uint64 `json:"incident"`
}

type leaks struct {
	totals
	By         []finding `json:"by"`
	Interfaces []struct {
		totals
		Interface string `json:"interface"`
	} `json:"interfaces"`
}

type incident struct {
	ID      uint64   `json:"id"`
	What    string   `json:"what"`
	Route   string   `json:"route"`
	Packets *int     `json:"packets"` // nil: not measured
	Bytes   int      `json:"bytes"`
	Dropped int      `json:"dropped"`
	Shared  bool     `json:"shared"`
	Senders []sender `json:"senders"`
}

// status is the document of "culvert status --json", as its help describes it.
type status struct {
	Version  int `json:"version"`
	Sessions []struct {
		Tunnel  string `json:"tunnel"`
		State   string `json:"state"`
		Error   string `json:"error"`
		Removed int    `json:"removed"`
		OnLeak  string `json:"on_leak"`
		Leaks   *leaks `json:"leaks"`
	} `json:"sessions"`
	Incidents []incident `json:"incidents"`
	Leaks     *leaks     `json:"leaks"`
	Witness   struct {
		Mode    string    `json:"mode"`
		Reason  string    `json:"reason"`
		Error   string    `json:"error"`
		Guard   string    `json:"guard"`
		Until   time.Time `json:"until"`
		Adopted bool      `json:"adopted"`
		Holding []string  `json:"holding"`
		Senders string    `json:"senders"`
	} `json:"witness"`
}

// rig is a client with the program in it.
type rig struct {
	client *testenv.NS
	prog   *testenv.Program
}

// statusOf asks the daemon, whatever the exit code says.
func (r rig) status(t testing.TB) status {
	t.Helper()
	out := r.prog.Exec(t, "status", "--json")
	var st status
	if err := json.Unmarshal([]byte(out.Stdout), &st); err != nil || st.Version != 1 {
		t.Fatalf("culvert status --json: %v: %s", err, out)
	}
	return st
}

// leaked is the sum of all leaks.
func (r rig) leaked(t testing.TB) totals {
	t.Helper()
	st := r.status(t)
	if st.Leaks == nil {
		t.Fatalf("nothing is measured: %s", st.Witness.Reason)
	}
	return st.Leaks.totals
}

// table is "culvert leaks --json", which must add up.
func (r rig) table(t testing.TB) leaks {
	t.Helper()
	out := r.prog.Exec(t, "leaks", "--json", "--socket", r.prog.Socket)
	var doc struct{ Leaks *leaks }
	if err := json.Unmarshal([]byte(out.Stdout), &doc); err != nil || doc.Leaks == nil {
		t.Fatalf("culvert leaks --json: %v: %s", err, out)
	}
	var rows, devices totals
	for _, f := range doc.Leaks.By {
		rows.add(f.totals)
	}
	for _, i := range doc.Leaks.Interfaces {
		devices.add(i.totals)
	}
	if rows != doc.Leaks.totals || devices != doc.Leaks.totals {
		t.Errorf("the rows add up to %+v and the interfaces to %+v, not to %+v:\n%s", rows, devices, doc.Leaks.totals, out.Stdout)
	}
	return *doc.Leaks
}

func (a *totals) add(b totals) {
	a.Packets += b.Packets
	a.Bytes += b.Bytes
	a.Dropped += b.Dropped
}

// enforcing waits until every session is enforcing.
func (r rig) enforcing(t testing.TB) {
	t.Helper()
	r.prog.Must(t, "status", "--wait", patience.String())
}

// stub is a testenv.Stub with the program in its client, and the routes that a
// VPN client would have made.
type stub struct {
	rig
	*testenv.Stub
}

const sites = "172.31.0.0/16,fd31::/48"

func newStub(t testing.TB) *stub {
	t.Helper()
	s := testenv.NewStub(t)
	// Whoever is asked for on the LAN answers, so that what leaks is seen there.
	s.LAN.AddAddr(t, "eth0", testenv.Prefixes("172.31.1.10/32", "172.31.2.10/32", "fd31:0:0:1::10/128")...)
	s.LAN.IP(t, "route add 192.168.9.0/24 via 10.77.0.20")
	s.Client.IP(t, "route add 172.31.0.0/16 dev tun0")
	s.Client.IP(t, "-6 route add fd31::/48 dev tun0")
	return &stub{rig{s.Client, testenv.NewProgram(t, s.Client, "")}, s}
}

// daemon starts the program with a session on the stub's tunnel, and waits
// until it has judged the table.
func (s *stub) daemon(t testing.TB, args ...string) *testenv.Process {
	t.Helper()
	d := s.prog.Daemon(t, append([]string{"--tunnel", "tun0", "--protect", sites}, args...)...)
	s.enforcing(t)
	return d
}

// daemonFor is daemon where the session may be a failed one, which is counted for
// all the same.
func (s *stub) daemonFor(t testing.TB, failed bool) *testenv.Process {
	t.Helper()
	if !failed {
		return s.daemon(t)
	}
	d := s.prog.Daemon(t, "--tunnel", "tun0", "--protect", sites)
	d.WaitOutput(t, "msg=ready", 1, patience)
	testenv.Eventually(t, patience, "a failed session", func() bool { return s.status(t).Sessions[0].State == "failed" })
	return d
}

// stopped ends a daemon in order.
func stopped(t testing.TB, d *testenv.Process) {
	t.Helper()
	if code := d.Stop(t); code != 0 {
		t.Errorf("culvert run ended with %d:\n%s", code, d.Output())
	}
}

// exact ends a counter and insists on an exact count.
func exact(t testing.TB, c *testenv.Counter) testenv.Count {
	t.Helper()
	got, err := c.Stop()
	if err != nil || got.Lost > 0 {
		t.Errorf("counter: %v, %v", got, err)
	}
	return got
}

// same compares what was captured with what culvert counted. Each packet has an
// Ethernet header that the capture leaves out.
func same(t testing.TB, what string, c testenv.Count, got totals) {
	t.Helper()
	if int(c.Packets) != got.Packets || int(c.Bytes)+14*got.Packets != got.Bytes {
		t.Errorf("%s: captured %d packets, %d bytes and as many headers of 14; culvert counted %d packets, %d bytes",
			what, c.Packets, c.Bytes, got.Packets, got.Bytes)
	}
}

// settled waits until culvert has counted what there is to count.
func (r rig) settled(t testing.TB, packets int) totals {
	t.Helper()
	var got totals
	testenv.Until(patience, func() bool { got = r.leaked(t); return got.Packets >= packets })
	return got
}

// row finds the finding of a mechanism.
func (l *leaks) row(mechanism string) (found finding, err error) {
	var all []string
	n := 0
	for _, f := range l.By {
		if f.Mechanism == mechanism {
			found = f
			n++
		}
		all = append(all, fmt.Sprintf("%s (%d): %s: %s", f.Process, f.Packets, f.Mechanism, f.Why))
	}
	if n != 1 {
		return found, fmt.Errorf("%d rows say %q:\n%s", n, mechanism, strings.Join(all, "\n"))
	}
	return found, nil
}
