package rtnl_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/enforce/rtnl"
	"github.com/culvert-project/culvert/testenv"
)

// host is a namespace with a LAN and a tunnel, and a System that the test can hold back.
type host struct {
	*rtnl.System
	ns     *testenv.NS
	gate   sync.Mutex   // held: the edge path does not get on
	asked  atomic.Int64 // how often the edge was asked
	blind  atomic.Bool  // the table cannot be read
	busy   sync.Once    // the edge was asked for the first time
	asking chan struct{}
}

func newHost(t *testing.T) *host {
	testenv.Require(t, testenv.Root)
	ns, far := testenv.Namespace(t, "edge"), testenv.Namespace(t, "far")
	testenv.Veth(t, testenv.End{NS: ns, Name: "eth0", Addrs: testenv.Prefixes("192.168.1.2/24", "fd01::2/64")},
		testenv.End{NS: far, Name: "eth0"})
	testenv.OpenTun(t, ns, "tun0", testenv.Prefixes("10.8.0.2/24", "fd08::2/64")...)
	ns.IP(t, "route", "add", "172.16.0.0/12", "via", "10.8.0.1", "dev", "tun0")
	ns.IP(t, "-6", "route", "add", "fd31::/32", "dev", "tun0")
	return &host{System: open(t, ns), ns: ns, asking: make(chan struct{})}
}

func (h *host) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	held := func(change enforce.Change, r *plan.Route) enforce.Answer {
		h.busy.Do(func() { close(h.asking) })
		h.gate.Lock()
		defer h.gate.Unlock()
		h.asked.Add(1)
		return edge(change, r)
	}
	return h.System.Watch(ctx, held, sink, ready)
}

func (h *host) Table(ctx context.Context) iter.Seq2[plan.Route, error] {
	if h.blind.Load() {
		return func(yield func(plan.Route, error) bool) { yield(plan.Route{}, errors.New("blind")) }
	}
	return h.System.Table(ctx)
}

var session = enforce.Session{Tunnel: "tun0", Protect: testenv.Prefixes("172.16.0.0/12", "fd31::/32")}

// enforce runs an Enforcer on the host, and returns how to end it.
func (h *host) enforce(t *testing.T, opt enforce.Options) (*enforce.Enforcer, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	e := enforce.New(h, &enforcetest.Journal{}, opt)
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	select {
	case <-e.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	return e, func() error { cancel(); return <-ended }
}

// batch adds n conflicting routes.
func (h *host) batch(t *testing.T, n int) {
	t.Helper()
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "route add 172.%d.%d.%d via 192.168.1.66\n", 16+i/60_000, 1+i/250%240, 1+i%250)
	}
	cmd := h.ns.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip -batch: %v: %s", err, out)
	}
}

func statusOf(t *testing.T, e *enforce.Enforcer) enforce.SessionStatus {
	t.Helper()
	st, err := e.Status(t.Context())
	if err != nil || len(st.Sessions) != 1 {
		t.Fatalf("%+v, %v", st, err)
	}
	return st.Sessions[0]
}

// TestEdgeAlone: the level path can read nothing. What comes is answered all the same: an
// edge that is dead would be mended by nobody.
func TestEdgeAlone(t *testing.T) {
	h := newHost(t)
	before := h.ns.MainTable(t)
	e, stop := h.enforce(t, enforce.Options{})
	if _, err := e.Open(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	h.blind.Store(true)
	for _, c := range []struct {
		words string
		what  string // of the incident
	}{
		{"route add 172.17.0.0/16 via 192.168.1.66", "removed"},
		{"route add blackhole 172.18.0.0/16", "removed"},
		{"route add 172.16.0.0/12 via 192.168.1.66 tos 0x10", "removed"},
		{"-6 route add fd31:0:5::/48 via fd01::66", "removed"},
		{"route replace 172.16.0.0/12 via 192.168.1.66", "removed"},
		{"route del 172.16.0.0/12 via 10.8.0.1 dev tun0", "readded"},
		{"-6 route del fd31::/32 dev tun0", "readded"},
	} {
		h.ns.IP(t, strings.Fields(c.words)...)
		testenv.Eventually(t, 20*time.Second, c.words+" is answered", func() bool {
			return h.ns.MainTable(t) == before
		})
		testenv.Eventually(t, 20*time.Second, c.words+" is told", func() bool {
			st, err := e.Status(t.Context())
			if err != nil || len(st.Incidents) == 0 {
				return false
			}
			in := st.Incidents[len(st.Incidents)-1]
			dst := strings.Fields(strings.NewReplacer("blackhole ", "", "-6 ", "").Replace(c.words))[2]
			return in.What == c.what && in.Path == "edge" && strings.Contains(in.Route, dst)
		})
	}
	h.blind.Store(false)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if after := h.ns.MainTable(t); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}

// TestBacklogThatStood: the announcements of 50,000 routes wait in the socket as a session
// opens: a routing daemon has just added them. All of them come back.
func TestBacklogThatStood(t *testing.T) {
	const many = 50_000
	h := newHost(t)
	var opened sync.Once
	e, stop := h.enforce(t, enforce.Options{OnPolicy: func(p enforce.Protection) {
		if len(p.Sessions) > 0 {
			opened.Do(func() { // the policy is in force, and the table has not been read by it
				h.gate.Unlock()
				testenv.Until(time.Minute, func() bool { return h.asked.Load() >= many })
			})
		}
	}})
	h.gate.Lock()
	h.batch(t, many)
	before := h.ns.MainTable(t)
	st, err := e.Open(t.Context(), session)
	if err != nil {
		t.Fatal(err)
	}
	if h.asked.Load() < many || len(st.Held) != many {
		t.Errorf("asked %d times, %d held", h.asked.Load(), len(st.Held))
	}
	if n := strings.Count(h.ns.MainTable(t), " via 192.168.1.66 "); n != 0 {
		t.Errorf("%d of the routes are left", n)
	}
	if _, err := e.Close(t.Context(), "tun0"); err != nil {
		t.Fatal(err)
	}
	if after := h.ns.MainTable(t); after != before {
		t.Errorf("%d of the routes are back", strings.Count(after, " via 192.168.1.66 "))
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestOverrun: more is announced than the socket holds. The kernel says so, once, and what
// was lost is found in the table.
func TestOverrun(t *testing.T) {
	const many = 2000
	t.Run("is told", func(t *testing.T) {
		h := newHost(t)
		rtnl.SetBuffer(h.System, 4096)
		sink := enforce.NewSink()
		ctx, cancel := context.WithCancel(t.Context())
		ended, ready := make(chan error, 1), make(chan struct{})
		go func() {
			keep := func(enforce.Change, *plan.Route) enforce.Answer { return enforce.Answer{} }
			ended <- h.Watch(ctx, keep, sink, func() { close(ready) })
		}()
		<-ready
		var told atomic.Bool
		go func() { // at once: of reasons that wait together the first alone is kept
			for {
				select {
				case why := <-sink.DirtyC():
					told.Store(told.Load() || strings.Contains(why, "no buffer space"))
				case <-ctx.Done():
					return
				}
			}
		}()
		h.gate.Lock()
		h.batch(t, many)
		h.gate.Unlock()
		testenv.Eventually(t, 20*time.Second, "the overrun is told", told.Load)
		if n := h.asked.Load(); n >= many {
			t.Errorf("the edge was asked %d times: nothing was lost", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Run("is made good", func(t *testing.T) {
		h := newHost(t)
		rtnl.SetBuffer(h.System, 4096)
		before := h.ns.MainTable(t)
		e, stop := h.enforce(t, enforce.Options{})
		if _, err := e.Open(t.Context(), session); err != nil {
			t.Fatal(err)
		}
		h.gate.Lock()
		h.batch(t, many)
		n := h.asked.Load()
		h.gate.Unlock()
		testenv.Eventually(t, 20*time.Second, "all of it is removed", func() bool {
			return h.ns.MainTable(t) == before && statusOf(t, e).Removed == many
		})
		if got := h.asked.Load() - n; got >= many {
			t.Errorf("the edge was asked %d times: nothing was lost", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestNexthopsGoWithTheirLink: the kernel drops the nexthop objects of an interface that
// goes down or away, and their places in groups, without a word. A route by what is left of
// a group leads where that leads.
func TestNexthopsGoWithTheirLink(t *testing.T) {
	for name, go_ := range map[string][]string{"down": {"link", "set", "eth0", "down"}, "deleted": {"link", "del", "eth0"}} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.ns.Sysctl(t, "net.ipv4.nexthop_compat_mode", "0") // announcements name the object alone
			h.ns.IP(t, "nexthop", "add", "id", "1", "via", "10.8.0.1", "dev", "tun0")
			h.ns.IP(t, "nexthop", "add", "id", "2", "via", "192.168.1.66", "dev", "eth0")
			sink := enforce.NewSink()
			ctx, cancel := context.WithCancel(t.Context())
			ended, ready := make(chan error, 1), make(chan struct{})
			heard := make(chan plan.Route, 64)
			go func() {
				note := func(_ enforce.Change, r *plan.Route) enforce.Answer {
					heard <- *r
					return enforce.Answer{}
				}
				ended <- h.Watch(ctx, note, sink, func() { close(ready) })
			}()
			<-ready
			h.ns.IP(t, "nexthop", "add", "id", "10", "group", "1/2")
			h.ns.IP(t, go_...)
			h.ns.IP(t, "route", "add", "172.20.0.0/16", "nhid", "10")
			tun := uint32(0)
			facts, err := h.Facts(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range facts.Links {
				if l.Name == "tun0" {
					tun = l.Index
				}
			}
			for timeout := time.After(20 * time.Second); ; {
				select {
				case r := <-heard:
					if r.Dst != netip.MustParsePrefix("172.20.0.0/16") {
						continue
					}
					for hop := range r.Hops() {
						if hop.Link != tun {
							t.Errorf("a leg by interface %d is left of the group, the tunnel is %d", hop.Link, tun)
						}
					}
				case <-timeout:
					t.Error("the route was not announced")
				}
				break
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
