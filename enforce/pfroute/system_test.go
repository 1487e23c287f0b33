package pfroute

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
	"github.com/culvert-project/culvert/enforce/plan"
)

func to(dst string, hop plan.Hop) plan.Route {
	return plan.Route{Dst: netip.MustParsePrefix(dst), Hop: hop}
}

var (
	en0  = plan.Hop{Link: 4, Via: netip.MustParseAddr("192.168.1.1")}
	en1  = plan.Hop{Link: 6, Via: netip.MustParseAddr("192.168.2.1")}
	utun = plan.Hop{Link: 16}
	peer = plan.Hop{Link: 16, Via: netip.MustParseAddr("10.8.0.1")}
)

func own(r plan.Route) plan.Route { r.Origin = plan.Own; return r }

// desk is a fake kernel with the adapter on it.
type desk struct {
	*testing.T
	k *fakeKernel
	s *System
}

func newDesk(t *testing.T) desk {
	k := ground()
	return desk{t, k, newSystem(fakeRIB{k})}
}

func (d desk) add(r plan.Route) {
	d.Helper()
	if err := d.k.other(route8(1, r)); err != nil {
		d.Fatalf("add %s: %v", enforcetest.Text(r), err)
	}
}

// at returns the standing route to a destination, or none.
func (d desk) at(dst string) (out plan.Route) {
	d.Helper()
	for r, err := range d.s.Table(d.Context()) {
		if err != nil {
			d.Fatal(err)
		}
		if r.Dst.String() == dst {
			out = r
		}
	}
	return out
}

func (d desk) expect(dst string, hop plan.Hop, origin plan.Origin) {
	d.Helper()
	if got := d.at(dst); got.Hop != hop || got.Origin != origin {
		d.Errorf("%s goes by %s, origin %v; want %+v, origin %v", dst, enforcetest.Text(got), got.Origin, hop, origin)
	}
}

// apply carries out actions. That there was nothing to do is no failure: idles asks.
func (d desk) apply(actions ...plan.Action) error {
	errs := d.s.Apply(d.Context(), actions)
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, enforce.ErrAlready) })...)
}

// idles carries out an action that finds nothing to do.
func (d desk) idles(a plan.Action) {
	d.Helper()
	if err := d.s.Apply(d.Context(), []plan.Action{a})[0]; !errors.Is(err, enforce.ErrAlready) {
		d.Errorf("%v %s: %v, want %v", a.Kind, enforcetest.Text(a.Route), err, enforce.ErrAlready)
	}
}

func TestPutTakesThePlaceOfARemoval(t *testing.T) {
	d := newDesk(t)
	d.add(to("10.0.0.0/8", en0))
	put := plan.Action{Kind: plan.Put, Route: own(to("10.0.0.0/8", utun))}
	if err := d.apply(put); !errors.Is(err, enforce.ErrNotNow) {
		t.Errorf("put on another's place: %v, want %v", err, enforce.ErrNotNow)
	}
	d.expect("10.0.0.0/8", en0, plan.Foreign)
	remove := plan.Action{Kind: plan.Remove, Route: d.at("10.0.0.0/8")}
	if err := d.apply(put, remove); err != nil {
		t.Fatal(err)
	}
	d.expect("10.0.0.0/8", utun, plan.Own)
}

func TestPutOnWhatLeadsThere(t *testing.T) {
	d := newDesk(t)
	d.add(to("10.0.0.0/8", utun))
	if err := d.apply(plan.Action{Kind: plan.Put, Route: own(to("10.0.0.0/8", utun))}); !errors.Is(err, enforce.ErrNotNow) {
		t.Errorf("a route of ours where another's leads the same way: %v", err)
	}
	seen := d.at("10.0.0.0/8")
	if err := d.apply(plan.Action{Kind: plan.Put, Route: seen}, plan.Action{Kind: plan.Forget}); err != nil {
		t.Errorf("the tunnel's route as last seen, which stands: %v", err)
	}
	if err := d.apply(plan.Action{Kind: plan.Remove, Route: seen}, plan.Action{Kind: plan.Put, Route: seen}); err != nil {
		t.Error(err)
	}
	d.expect("10.0.0.0/8", utun, plan.Foreign)
	pin := own(to("192.168.7.7/32", plan.Hop{Link: 4, Via: netip.MustParseAddr("fe80::1")}))
	pin.Dst = netip.MustParsePrefix("2001:db8:7::7/128")
	if err := d.apply(plan.Action{Kind: plan.Put, Route: pin}); err != nil {
		t.Error(err)
	}
	d.expect("2001:db8:7::7/128", pin.Hop, plan.Own)
}

func TestRestoreWhereAnotherStands(t *testing.T) {
	d := newDesk(t)
	d.add(to("172.31.0.0/16", en0))
	held := d.at("172.31.0.0/16")
	restore := plan.Action{Kind: plan.Restore, Route: held}
	put := plan.Action{Kind: plan.Put, Route: own(to("172.31.0.0/16", utun))}
	if err := d.apply(put, plan.Action{Kind: plan.Remove, Route: held}); err != nil {
		t.Fatal(err)
	}
	if err := d.apply(restore); err != nil {
		t.Errorf("in place of ours: %v", err)
	}
	d.expect("172.31.0.0/16", en0, plan.Foreign)

	_ = d.apply(plan.Action{Kind: plan.Remove, Route: held})
	d.add(to("172.31.0.0/16", peer))
	if err := d.apply(restore); !errors.Is(err, enforce.ErrNotNow) {
		t.Errorf("in place of the VPN's: %v, want %v", err, enforce.ErrNotNow)
	}
	_ = d.apply(plan.Action{Kind: plan.Remove, Route: d.at("172.31.0.0/16")})
	d.add(to("172.31.0.0/16", plan.Hop{Link: 4, Via: netip.MustParseAddr("192.168.1.2")}))
	if err := d.apply(restore); !errors.Is(err, enforce.ErrGone) {
		t.Errorf("in place of its newer copy: %v, want %v", err, enforce.ErrGone)
	}
}

func TestRestoreWithoutItsAddress(t *testing.T) {
	d := newDesk(t)
	d.add(to("172.31.0.0/16", en0))
	held := d.at("172.31.0.0/16")
	_ = d.apply(plan.Action{Kind: plan.Remove, Route: held})
	_ = d.k.removeAddress(4, netip.MustParsePrefix("192.168.1.42/24"))
	if err := d.apply(plan.Action{Kind: plan.Restore, Route: held}); !errors.Is(err, enforce.ErrGone) {
		t.Errorf("restored without the address it used: %v, want %v", err, enforce.ErrGone)
	}
	black := to("172.30.0.0/16", plan.Hop{})
	black.Type = plan.Blackhole
	d.add(black)
	black = d.at("172.30.0.0/16")
	if err := d.apply(plan.Action{Kind: plan.Remove, Route: black}, plan.Action{Kind: plan.Restore, Route: black}); err != nil {
		t.Error(err)
	}
	if d.at("172.30.0.0/16").Type != plan.Blackhole {
		t.Error("the blackhole is not back")
	}
}

// TestDeleteOfAnother has another route take the victim's place between the
// look and the deletion, which macOS makes by place alone.
func TestDeleteOfAnother(t *testing.T) {
	d := newDesk(t)
	d.add(to("172.31.0.0/16", en0))
	victim := d.at("172.31.0.0/16")
	swap := func() {
		d.k.deleting = nil
		r := fakeRoute{dst: victim.Dst}
		i := d.k.find(r)
		d.k.routes[i].gw, d.k.routes[i].index = fakeSockaddr(peer.Via), 16
		d.k.routes[i].ifa = netip.MustParseAddr("10.8.0.2")
	}
	d.k.deleting = swap
	d.idles(plan.Action{Kind: plan.Remove, Route: victim})
	d.expect("172.31.0.0/16", peer, plan.Foreign)

	_ = d.k.other(route8(2, victim))
	d.add(to("172.31.0.0/16", en0))
	d.k.deleting = func() { swap(); d.k.refuse = refusing(1, syscall.EPERM) }
	if err := d.apply(plan.Action{Kind: plan.Remove, Route: victim}); !errors.Is(err, syscall.EPERM) {
		t.Errorf("the other route could not be put back: %v", err)
	}
}

func refusing(typ byte, err error) func([]byte) error {
	return func(m []byte) error {
		if m[3] == typ {
			return err
		}
		return nil
	}
}

func TestErrors(t *testing.T) {
	put := plan.Action{Kind: plan.Put, Route: own(to("10.0.0.0/8", utun))}
	for _, c := range []struct{ kernel, want error }{
		{syscall.ENETUNREACH, enforce.ErrNotNow}, {syscall.EEXIST, enforce.ErrNotNow},
		{syscall.ENXIO, enforce.ErrGone}, {syscall.EPERM, syscall.EPERM},
	} {
		d := newDesk(t)
		d.k.refuse = refusing(1, c.kernel)
		if err := d.apply(put); !errors.Is(err, c.want) {
			t.Errorf("%v came to %v, want %v", c.kernel, err, c.want)
		}
	}
	d := newDesk(t)
	d.add(to("10.0.0.0/8", en0))
	standing := d.at("10.0.0.0/8")
	remove := plan.Action{Kind: plan.Remove, Route: standing}
	d.k.refuse = refusing(2, syscall.EPERM)
	if err := d.apply(put, remove); strings.Count(err.Error(), "delete 10.0.0.0/8") != 2 {
		t.Errorf("deletions refused: %v", err)
	}
	d.k.refuse = refusing(2, syscall.ESRCH)
	d.idles(remove)
	d.k.refuse, d.k.mute = nil, true
	if err := d.apply(remove); err != nil || d.at("10.0.0.0/8").Dst.IsValid() {
		t.Errorf("a deletion whose report was lost: %v", err)
	}
	bad := own(to("10.0.0.0/8", utun))
	bad.Raw = "not a message"
	if err := d.apply(plan.Action{Kind: plan.Put, Route: bad}); !errors.Is(err, errBytes) {
		t.Errorf("bytes that are no route: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if errs := d.s.Apply(ctx, []plan.Action{put}); !errors.Is(errs[0], context.Canceled) {
		t.Errorf("canceled: %v", errs)
	}
}

func TestReadErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, call := range []string{"routes", "interfaces", "open", "uptime", "boot"} {
		d := newDesk(t)
		d.k.failing[call] = broken
		_, err := readAll(d.s)
		_, factsErr := d.s.Facts(t.Context())
		_, bindErr := d.s.Binding()
		watchErr := d.s.Watch(canceled(t), nil, enforce.NewSink(), func() {})
		applyErr := d.apply(plan.Action{Kind: plan.Put, Route: own(to("10.0.0.0/8", utun))},
			plan.Action{Kind: plan.Remove}, plan.Action{Kind: plan.Restore})
		if err = errors.Join(err, factsErr, bindErr, watchErr, applyErr); !errors.Is(err, broken) {
			t.Errorf("%s fails and nobody says so: %v", call, err)
		}
	}
	d := newDesk(t)
	d.k.failing["routes"] = syscall.ENOMEM
	if _, err := readAll(d.s); !errors.Is(err, enforce.ErrInterrupted) {
		t.Errorf("a table that outgrew its buffer: %v", err)
	}
	d = newDesk(t)
	d.k.garbage = []byte{1, 0, 0}
	if _, err := readAll(d.s); !errors.Is(err, errBytes) {
		t.Errorf("a table that ends in garbage: %v", err)
	}
	if b, err := d.s.Binding(); err != nil || b.Boot != "boot-1" || d.s.Close() != nil {
		t.Errorf("binding %+v, %v", b, err)
	}
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func readAll(s *System) (out []plan.Route, err error) {
	for r, e := range s.Table(context.Background()) {
		if e != nil {
			return out, e
		}
		out = append(out, r)
	}
	return out, nil
}

// TestTable lists the ground: what is scoped, cloned, a neighbour or the host's
// own address is not there.
func TestTable(t *testing.T) {
	routes, err := readAll(newDesk(t).s)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range routes {
		got = append(got, enforcetest.Text(r))
	}
	slices.Sort(got)
	want := []string{
		"10.8.0.1/32 dev 16", "127.0.0.0/8 dev 1 proto 2",
		"192.168.1.0/24 dev 4 proto 1", "192.168.2.0/24 dev 6 proto 1",
		"2001:db8:1::/64 dev 4 proto 1", "2001:db8:2::/64 dev 6 proto 1", "224.0.0.0/4 dev 4 proto 2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("table is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// heard runs a watch and collects what its edge is asked, and why it is dirty.
type heard struct {
	edges chan plan.Route
	sink  *enforce.Sink
	done  chan error
}

func (d desk) watch(answer func(enforce.Change, *plan.Route) enforce.Answer) heard {
	h := heard{edges: make(chan plan.Route, 100), sink: enforce.NewSink(), done: make(chan error, 1)}
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(d.Context())
	d.Cleanup(cancel)
	go func() {
		h.done <- d.s.Watch(ctx, func(c enforce.Change, r *plan.Route) enforce.Answer {
			h.edges <- *r
			return answer(c, r)
		}, h.sink, func() { close(ready) })
	}()
	<-ready
	return h
}

func nothing(enforce.Change, *plan.Route) enforce.Answer { return enforce.Answer{} }

func (h heard) dirty(t *testing.T, want string) {
	t.Helper()
	select {
	case why := <-h.sink.DirtyC():
		if !strings.Contains(why, want) {
			t.Errorf("dirty because of %q, want %q", why, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("not dirty, want %q", want)
	}
}

func (h heard) edge(t *testing.T, want string) {
	t.Helper()
	select {
	case r := <-h.edges:
		if got := enforcetest.Text(r); got != want {
			t.Errorf("edge was asked of %s, want %s", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("edge was not asked of %s", want)
	}
}

func TestWatchMessages(t *testing.T) {
	d := newDesk(t)
	d.s.poll = time.Hour
	h := d.watch(nothing)
	say := func(m []byte) {
		d.k.mu.Lock()
		defer d.k.mu.Unlock()
		d.k.say(m, nil)
	}
	raw := func(typ byte, more ...byte) []byte {
		m := slices.Concat([]byte{0, 0, 5, typ}, more)
		le.PutUint16(m, uint16(len(m)))
		return m
	}
	for _, typ := range []byte{rtmGet, rtmMiss, rtmLosing, rtmLock, rtmResolve, rtmNewMAddr, rtmDelMAddr, rtmNewMAddr2} {
		say(raw(typ)) // nothing to say of the table
	}
	for _, c := range []struct {
		m    []byte
		want string
	}{
		{raw(rtmRedirect), "redirect"}, {raw(rtmDelAddr), "address"}, {raw(rtmIfInfo2), "interface"},
		{raw(0x77), "unknown"}, {raw(rtmAdd, 1, 2, 3), "could not be read"}, {[]byte{9, 0, 5}, "could not be read"},
		{nil, "receive"},
	} {
		say(c.m)
		h.dirty(t, c.want)
	}
	_ = d.k.other(route8(1, to("192.168.1.0/24", en1))) // EEXIST: told to everybody, and no change
	d.add(to("10.1.0.0/16", en1))
	h.edge(t, "10.1.0.0/16 via 192.168.2.1 dev 6 proto 2")
	d.k.failing["routes"] = errors.New("broken")
	d.add(to("10.2.0.0/16", en1))
	h.edge(t, "10.2.0.0/16 via 192.168.2.1 dev 6 proto 2") // by its gateway's subnet
	h.dirty(t, "broken")
}

func TestWatchChange(t *testing.T) {
	d := newDesk(t)
	d.add(to("10.1.0.0/16", en0))
	h := d.watch(nothing)
	if err := d.k.other(route8(3, to("10.1.0.0/16", peer))); err != nil {
		t.Fatal(err)
	}
	h.edge(t, "10.1.0.0/16 via 10.8.0.1 dev 16 proto 2")
	m := route8(3, to("10.9.0.0/16", peer))
	d.k.mu.Lock()
	d.k.say(m, nil)
	d.k.mu.Unlock()
	h.dirty(t, "not there any more")
}

func TestWatchPolls(t *testing.T) {
	d := newDesk(t)
	d.s.poll = time.Millisecond
	d.watch(nothing).dirty(t, "poll")
}

func TestWatchClosedSocket(t *testing.T) {
	d := newDesk(t)
	h := d.watch(nothing)
	d.k.mu.Lock()
	sock := d.k.socks[0]
	d.k.mu.Unlock()
	sock.Close()
	if err := <-h.done; err == nil {
		t.Error("a watch whose socket is gone ended without an error")
	}
}

// TestEdgeReplaces answers a change of the tunnel's route, as a VPN's enemy
// makes it: one action takes the place back.
func TestEdgeReplaces(t *testing.T) {
	d := newDesk(t)
	d.add(to("10.0.0.0/8", peer))
	tunnels := d.at("10.0.0.0/8")
	h := d.watch(func(c enforce.Change, r *plan.Route) enforce.Answer {
		if c == enforce.Added && r.Hop.Link == 4 {
			return enforce.Answer{Put: &tunnels, Delete: true}
		}
		return enforce.Answer{}
	})
	if err := d.k.other(route8(3, to("10.0.0.0/8", en0))); err != nil {
		t.Fatal(err)
	}
	ev := <-h.sink.Events()
	if ev.Err != nil || ev.Port != 1000 || ev.Process != "route" || ev.Route.Hop != en0 {
		t.Errorf("told %+v", ev)
	}
	d.expect("10.0.0.0/8", peer, plan.Foreign)
}
