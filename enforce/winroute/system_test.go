package winroute

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

var (
	ethernet = plan.Hop{Link: 7, Via: netip.MustParseAddr("192.168.1.1")}
	wlan     = plan.Hop{Link: 9, Via: netip.MustParseAddr("192.168.2.1")}
	tunnel   = plan.Hop{Link: 21}
	peer     = plan.Hop{Link: 21, Via: netip.MustParseAddr("10.8.0.1")}
)

func to(dst string, hop plan.Hop) plan.Route {
	return plan.Route{Dst: netip.MustParsePrefix(dst), Hop: hop}
}

func own(r plan.Route) plan.Route { r.Origin = plan.Own; return r }

// desk is a fake IP Helper API with the adapter on it.
type desk struct {
	*testing.T
	k *fakeKernel
	s *System
}

func newDesk(t *testing.T) desk {
	k := ground()
	return desk{t, k, newSystem(k)}
}

// add adds a route as somebody else, its metric an offset.
func (d desk) add(r plan.Route, offset uint32) {
	d.Helper()
	b := d.k.fakeRow(r, 3)
	le.PutUint32(b[84:], offset)
	if err := d.k.create(b); err != nil {
		d.Fatalf("add %s: %v", enforcetest.Text(r), err)
	}
}

func (d desk) list() (out []plan.Route) {
	d.Helper()
	for r, err := range d.s.Table(d.Context()) {
		if err != nil {
			d.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func (d desk) text() string {
	d.Helper()
	var lines []string
	for _, r := range d.list() {
		lines = append(lines, enforcetest.Text(r))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// at returns the route by that hop, or none.
func (d desk) at(dst string, hop plan.Hop) (out plan.Route) {
	d.Helper()
	for _, r := range d.list() {
		if r.Dst.String() == dst && r.Hop == hop {
			out = r
		}
	}
	return out
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

// TestTable lists the ground: what Windows keeps for the host's own and for
// broadcast addresses is not there; multicast is plan's to ignore.
func TestTable(t *testing.T) {
	d := newDesk(t)
	want := []string{"10.8.0.0/24 dev 21 metric 261 proto 2", "127.0.0.0/8 dev 1 metric 331 proto 2",
		"192.168.1.0/24 dev 7 metric 281 proto 2", "192.168.2.0/24 dev 9 metric 291 proto 2",
		"2001:db8:1::/64 dev 7 metric 282 proto 2", "2001:db8:2::/64 dev 9 metric 292 proto 2", "2001:db8:8::/64 dev 21 metric 262 proto 2"}
	var got []string
	for line := range strings.Lines(d.text()) {
		if p := netip.MustParsePrefix(strings.Fields(line)[0]); !plan.InIgnored(p) || p.Bits() == 8 && p.Addr().Is4() {
			got = append(got, strings.TrimSpace(line))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("table is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// One that only looks like theirs is a route like any other.
	d.add(to("192.168.1.255/32", wlan), 0)
	if !d.at("192.168.1.255/32", wlan).Dst.IsValid() {
		t.Error("a gatewayed route to a broadcast address is hidden")
	}
}

func TestPut(t *testing.T) {
	d := newDesk(t)
	ours := own(to("10.0.0.0/8", tunnel))
	put := plan.Action{Kind: plan.Put, Route: ours}
	d.add(to("10.0.0.0/8", tunnel), 7)
	if err := d.apply(put); !errors.Is(err, enforce.ErrNotNow) {
		t.Errorf("a route of ours in another's place: %v, want %v", err, enforce.ErrNotNow)
	}
	seen := d.at("10.0.0.0/8", tunnel)
	remove := plan.Action{Kind: plan.Remove, Route: seen}
	if err := d.apply(plan.Action{Kind: plan.Put, Route: seen}, remove, put, put, plan.Action{Kind: plan.Forget}); err != nil {
		t.Error(err)
	}
	if got := d.at("10.0.0.0/8", tunnel); got.Origin != plan.Own || got.Metric != 5 {
		t.Errorf("ours is %+v", got)
	}
	if d.idles(remove); !d.at("10.0.0.0/8", tunnel).Dst.IsValid() {
		t.Error("the removal of another's took ours")
	}
	if err := d.apply(plan.Action{Kind: plan.Restore, Route: seen}); err != nil {
		t.Error(err)
	}
	if got := d.at("10.0.0.0/8", tunnel); !got.Same(seen) {
		t.Errorf("restored in place of ours: %+v, want %+v", got, seen)
	}
}

// TestUnmarked has a Windows that refuses the mark.
func TestUnmarked(t *testing.T) {
	d := newDesk(t)
	d.k.refuse = func(call string, r []byte) error {
		if call == "create" && le.Uint32(r[88:]) == OwnProtocol {
			return errInvalidParameter
		}
		return nil
	}
	put := plan.Action{Kind: plan.Put, Route: own(to("10.0.0.0/8", tunnel))}
	if err := d.apply(put, put); err != nil {
		t.Fatal(err)
	}
	got := d.at("10.0.0.0/8", tunnel)
	if got.Origin != plan.Own || got.Protocol != protoNetMgmt {
		t.Errorf("ours is %+v", got)
	}
	if err := d.apply(plan.Action{Kind: plan.Withdraw, Route: got}); err != nil {
		t.Error(err)
	}
	d.add(to("10.0.0.0/8", tunnel), 0)
	if got := d.at("10.0.0.0/8", tunnel); got.Origin != plan.Foreign {
		t.Error("after ours was withdrawn, another's is taken for it")
	}
}

// TestRestoreConnected has a Windows that keeps MIB_IPPROTO_LOCAL for itself.
func TestRestoreConnected(t *testing.T) {
	d := newDesk(t)
	lan := d.at("192.168.1.0/24", plan.Hop{Link: 7})
	d.k.refuse = func(call string, r []byte) error {
		if call == "create" && le.Uint32(r[88:]) == protoLocal {
			return errInvalidParameter
		}
		return nil
	}
	if err := d.apply(plan.Action{Kind: plan.Remove, Route: lan}, plan.Action{Kind: plan.Restore, Route: lan}); err != nil {
		t.Fatal(err)
	}
	if got := d.at("192.168.1.0/24", plan.Hop{Link: 7}); got.Protocol != protoNetMgmt || got.Metric != lan.Metric || got.Origin != plan.Foreign {
		t.Errorf("the network's route came back as %+v", got)
	}
}

func TestRestoreNewer(t *testing.T) {
	d := newDesk(t)
	d.add(to("172.31.0.0/16", ethernet), 3)
	held := d.at("172.31.0.0/16", ethernet)
	_ = d.apply(plan.Action{Kind: plan.Remove, Route: held})
	d.add(to("172.31.0.0/16", ethernet), 9)
	d.idles(plan.Action{Kind: plan.Restore, Route: held}) // its owner added it again
	if got := d.at("172.31.0.0/16", ethernet); got.Metric != 34 {
		t.Errorf("metric %d, want the newer 34", got.Metric)
	}
}

func TestErrors(t *testing.T) {
	put := plan.Action{Kind: plan.Put, Route: own(to("10.0.0.0/8", tunnel))}
	for _, c := range []struct{ kernel, want error }{
		{errNotFound, enforce.ErrGone}, {syscall.Errno(5), syscall.Errno(5)}, {errObjectExists, enforce.ErrNotNow},
	} {
		d := newDesk(t)
		d.k.refuse = refusing("create", c.kernel)
		if err := d.apply(put); !errors.Is(err, c.want) {
			t.Errorf("%v came to %v, want %v", c.kernel, err, c.want)
		}
	}
	d := newDesk(t)
	d.add(to("10.0.0.0/8", ethernet), 0)
	held := d.at("10.0.0.0/8", ethernet)
	actions := []plan.Action{{Kind: plan.Remove, Route: held}, {Kind: plan.Restore, Route: held}}
	d.k.refuse = refusing("entry", syscall.Errno(5))
	for i, err := range d.s.Apply(t.Context(), actions) {
		if !errors.Is(err, syscall.Errno(5)) {
			t.Errorf("%v: %v", actions[i].Kind, err)
		}
	}
	d.k.refuse = refusing("delete", syscall.Errno(5))
	if err := d.apply(actions[0]); !errors.Is(err, syscall.Errno(5)) {
		t.Errorf("remove: %v", err)
	}
	d.k.refuse = refusing("delete", errNotFound)
	if err := d.apply(actions[0]); err != nil {
		t.Errorf("gone in between: %v", err)
	}
	held.Raw = "short"
	for _, kind := range []plan.Kind{plan.Put, plan.Remove, plan.Restore} {
		if err := d.apply(plan.Action{Kind: kind, Route: held}); !errors.Is(err, errBytes) {
			t.Errorf("%v of bytes that are no row: %v", kind, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if errs := d.s.Apply(ctx, []plan.Action{put}); !errors.Is(errs[0], context.Canceled) {
		t.Errorf("canceled: %v", errs)
	}
}

func refusing(call string, err error) func(string, []byte) error {
	return func(c string, _ []byte) error {
		if c == call {
			return err
		}
		return nil
	}
}

func TestReadErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, call := range []string{"routes", "links", "addresses", "interfaces", "notify", "boot"} {
		d := newDesk(t)
		d.k.failing[call] = broken
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var tableErr error
		for _, err := range d.s.Table(t.Context()) {
			tableErr = err
		}
		_, factsErr := d.s.Facts(t.Context())
		_, bindErr := d.s.Binding()
		watchErr := d.s.Watch(ctx, nil, enforce.NewSink(), func() {})
		applyErr := d.apply(plan.Action{Kind: plan.Put, Route: own(to("10.0.0.0/8", tunnel))}, plan.Action{Kind: plan.Restore})
		if err := errors.Join(tableErr, factsErr, bindErr, watchErr, applyErr); !errors.Is(err, broken) {
			t.Errorf("%s fails and nobody says so: %v", call, err)
		}
	}
	d := newDesk(t)
	d.k.garbage = []byte{1}
	for _, err := range d.s.Table(t.Context()) {
		if !errors.Is(err, errBytes) {
			t.Errorf("a table that ends in garbage: %v", err)
		}
	}
	if b, err := d.s.Binding(); err != nil || b.Boot != "boot-1" || d.s.Close() != nil {
		t.Errorf("binding %+v, %v", b, err)
	}
}

// TestShortRow has a system whose rows are no rows.
func TestShortRow(t *testing.T) {
	var sc scene
	r := make(row, rowLen)
	if _, ok := sc.parse(r); ok {
		t.Error("a row of no family was read")
	}
	le.PutUint16(r[12:], 2)
	r[40] = 33
	if _, ok := sc.parse(r); ok {
		t.Error("an IPv4 prefix of 33 bits was read")
	}
	if _, ok := again(string(r)); ok {
		t.Error("and could be given back")
	}
}

type heard struct {
	edges chan string
	sink  *enforce.Sink
}

func (d desk) watch(answer func(enforce.Change, *plan.Route) enforce.Answer) heard {
	h := heard{edges: make(chan string, 100), sink: enforce.NewSink()}
	ready, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		done <- d.s.Watch(ctx, func(c enforce.Change, r *plan.Route) enforce.Answer {
			h.edges <- map[enforce.Change]string{enforce.Added: "+ ", enforce.Deleted: "- "}[c] + enforcetest.Text(*r)
			return answer(c, r)
		}, h.sink, func() { close(ready) })
	}()
	<-ready
	d.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			d.Errorf("watch: %v", err)
		}
	})
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
	case got := <-h.edges:
		if got != want {
			t.Errorf("edge was asked of %s, want %s", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("edge was not asked of %s", want)
	}
}

func TestWatch(t *testing.T) {
	d := newDesk(t)
	d.add(to("10.1.0.0/16", ethernet), 4)
	h := d.watch(nothing)
	r := d.k.fakeRow(to("10.1.0.0/16", ethernet), 3)
	le.PutUint32(r[84:], 9)
	if err := d.k.set(r); err != nil {
		t.Fatal(err)
	}
	h.edge(t, "+ 10.1.0.0/16 via 192.168.1.1 dev 7 metric 34 proto 3")
	h.dirty(t, "a route changed") // another may win now
	d.k.setMetric(7, 50)
	h.dirty(t, "interface changed")
	_ = d.k.delete(r)
	h.edge(t, "- 10.1.0.0/16 via 192.168.1.1 dev 7 metric 59 proto 3") // as last seen
	d.k.mu.Lock()
	d.k.say(1, r)
	d.k.mu.Unlock()
	h.dirty(t, "came and went")
	d.k.mu.Lock()
	d.k.say(2, r) // of a route that was never seen: by its key
	d.k.say(1, make([]byte, 104))
	d.k.mu.Unlock()
	h.edge(t, "- 10.1.0.0/16 via 192.168.1.1 dev 7 metric 50")
	h.dirty(t, "could not be read")
	if len(h.edges) != 0 {
		t.Errorf("edge was asked of more: %s", <-h.edges)
	}
}

func TestWatchOverrun(t *testing.T) {
	w := watcher{sink: enforce.NewSink(), notices: make(chan notice)}
	w.route(changeAdd, make(row, rowLen))
	heard{sink: w.sink}.dirty(t, "overran")
}

func TestWatchPolls(t *testing.T) {
	d := newDesk(t)
	d.s.poll = time.Millisecond
	d.watch(nothing).dirty(t, "poll")
}
