package witness

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/loader"
)

// sums are a book's totals: of all, and by interface.
func (b *book) totals() string { return fmt.Sprint(b.sums.all.Packets, " ", b.byDevice()) }

func (b *book) byDevice() map[string]uint64 {
	by := map[string]uint64{}
	for name, t := range b.sums.devices {
		by[name] = t.Packets
	}
	return by
}

func (b *book) want(t *testing.T, when, totals string) {
	t.Helper()
	if got := b.totals(); got != totals {
		t.Errorf("%s: %s, want %s", when, got, totals)
	}
	var rows uint64
	for _, f := range b.rows {
		rows += f.Packets
	}
	if rows != b.sums.all.Packets {
		t.Errorf("%s: the rows hold %d packets of %d", when, rows, b.sums.all.Packets)
	}
}

// TestUpperChanges: a bridge that loses its last port, or is deleted, has what its port counted too; what leaves by it from
// then on is its own.
func TestUpperChanges(t *testing.T) {
	b := newBook()
	above := func(upper bool, packets uint64) loader.Counter {
		return loader.Counter{Interface: 3, Prefix: 1, Reason: loader.LeakProtected, Packets: packets, Bytes: 100 * packets, Upper: upper}
	}
	port := loader.Counter{Interface: 2, Prefix: 1, Reason: loader.LeakProtected, Packets: 100, Bytes: 10000}
	seq := []struct {
		when     string
		counters []loader.Counter
		want     string
	}{
		{"with a port", []loader.Counter{port, above(true, 100)}, "100 map[br0:0 eth0:100]"},
		{"without", []loader.Counter{port, above(true, 100)}, "100 map[br0:0 eth0:100]"},
		{"and it leaks itself", []loader.Counter{port, above(true, 100), above(false, 5)}, "105 map[br0:5 eth0:100]"},
		{"with a port again", []loader.Counter{port, above(true, 300), above(false, 5)}, "105 map[br0:5 eth0:100]"},
	}
	for i, s := range seq {
		b.counters = s.counters
		b.readAt(time.Duration(i) * time.Second)
		b.want(t, s.when, s.want)
	}
}

// TestUpperHasItsSenders: what a device stopped as one above others, and what it let out as none, are two sums of one
// sender.
func TestUpperHasItsSenders(t *testing.T) {
	b := newBook()
	both := func(upper bool, packets, dropped uint64) {
		c := loader.Counter{Interface: 2, Prefix: 1, Reason: loader.LeakProtected, Packets: packets, Bytes: 100 * packets, Dropped: dropped, Upper: upper}
		b.counters = append(b.counters, c)
		b.senders = append(b.senders, loader.Sender{Interface: 2, Prefix: 1, Reason: loader.LeakProtected, Origin: loader.Socket, PID: 1,
			Comm: "p1", Packets: packets, Bytes: 100 * packets, Dropped: dropped, Upper: upper, First: b.now, Last: b.now, Bound: 2,
			To: netip.MustParseAddrPort("172.31.1.10:7")})
	}
	both(true, 10, 4)
	b.readAt(time.Second)
	b.check(t, "above", "p1 4 bound")
	both(false, 3, 0)
	b.readAt(2 * time.Second)
	b.check(t, "and not above", "p1 7 bound")
}

// TestGone: the loader adds an interface's sums to those of all that are gone, once it has told of them. That is no leak
// anew, its interface keeps its name, and what came after the last reading is counted.
func TestGone(t *testing.T) {
	b := newBook()
	of := func(device int, packets uint64) loader.Counter {
		return loader.Counter{Interface: device, Prefix: 1, Reason: loader.LeakProtected, Packets: packets, Bytes: 100 * packets}
	}
	overflow := loader.Counter{Reason: loader.LeakOverflow, Packets: 1, Bytes: 100}
	seq := []struct {
		when     string
		counters []loader.Counter
		want     string
	}{
		{"an older process's", []loader.Counter{of(0, 4), of(2, 10)}, "14 map[eth0:10 gone:4]"},
		{"before", []loader.Counter{of(0, 4), of(2, 12), of(3, 7)}, "23 map[br0:7 eth0:12 gone:4]"},
		{"one is gone", []loader.Counter{of(0, 16), of(3, 7)}, "23 map[br0:7 eth0:12 gone:4]"},
		{"both, and more", []loader.Counter{of(0, 28)}, "28 map[br0:7 eth0:12 gone:9]"},
		{"what found no room is another thing", []loader.Counter{overflow, of(0, 28)}, "29 map[any:1 br0:7 eth0:12 gone:9]"},
	}
	for i, s := range seq {
		b.counters = s.counters
		b.readAt(time.Duration(i) * time.Second)
		b.want(t, s.when, s.want)
	}
	for _, f := range b.findings(99, func(f *report.Finding) bool { return f.Interface == goneName }) {
		if f.Packets != 9 {
			t.Errorf("found of those that are gone: %+v", f)
		}
	}
}

// TestGoneIsBounded: containers come and go; what is kept of each does not stay.
func TestGoneIsBounded(t *testing.T) {
	b := newBook()
	const interfaces = 3000
	for i := range interfaces {
		b.names[100+i] = fmt.Sprint("veth", i)
		b.counters = []loader.Counter{{Interface: 100 + i, Prefix: 1, Reason: loader.LeakProtected, Packets: 2, Bytes: 200}}
		if i > 0 {
			b.counters = append(b.counters, loader.Counter{Prefix: 1, Reason: loader.LeakProtected, Packets: 2 * uint64(i), Bytes: 200 * uint64(i)})
		}
		b.readAt(time.Duration(i) * time.Second)
	}
	if b.sums.all.Packets != 2*interfaces || len(b.counted) > 2 || len(b.past) > pastKept || len(b.sums.devices) > pastKept+2 {
		t.Errorf("%d packets, %d sums, %d names, %d interfaces told", b.sums.all.Packets, len(b.counted), len(b.past), len(b.sums.devices))
	}
}

// TestJoinCountsWithoutSenders: who sent may be unknown for once; how much was sent is known.
func TestJoinCountsWithoutSenders(t *testing.T) {
	p := &fakeProbe{sendersErr: errors.New("no memory")}
	p.counters = []loader.Counter{{Interface: 2, Prefix: 1, Reason: loader.LeakProtected, Packets: 7, Bytes: 700}}
	j, _ := joined(t, p, Rules{})
	leaks, state, err := j.Leaks(t.Context())
	if err != nil || leaks.Packets != 7 || len(leaks.By) != 1 || leaks.By[0].Packets != 7 {
		t.Errorf("%+v, %v", leaks, err)
	}
	if state.Error != "no memory" {
		t.Errorf("the witness says %q", state.Error)
	}
}
