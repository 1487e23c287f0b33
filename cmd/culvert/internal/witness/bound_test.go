package witness

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/loader"
)

// faces is a sender that is another each time: a process that forks, or a host
// beyond that chooses its addresses.
func faces(i int) loader.Sender {
	s := loader.Sender{
		Interface: 2 + i%3, Prefix: 1, Reason: loader.LeakProtected, Origin: loader.Socket, PID: 2 + i, UID: 65534, Comm: fmt.Sprint("n", i),
		To: netip.MustParseAddrPort("172.31.1.10:7"), Packets: 1, Bytes: 100, First: start, Last: start,
	}
	if i%2 == 1 {
		s.Origin, s.PID, s.Comm, s.Ingress = loader.Forwarded, 0, "", 5
		s.Source = netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	return s
}

func sampleOf(s *loader.Sender) loader.Sample {
	return loader.Sample{
		Time: s.Last, Interface: s.Interface, Prefix: s.Prefix, Reason: s.Reason, Origin: s.Origin, PID: s.PID, UID: s.UID, Comm: s.Comm,
		Ingress: s.Ingress, Source: netip.AddrPortFrom(s.Source, 9), Destination: s.To, Segments: 1,
	}
}

// TestMillionSenders: who has a new face for each packet costs no more memory
// than the ledger's bounds, and every packet is still in a row.
func TestMillionSenders(t *testing.T) {
	const all, batch = 1_000_000, 4096
	b := newBook()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	sent := map[int]uint64{}
	for from := 0; from < all; from += batch {
		n := min(batch, all-from)
		b.senders = b.senders[:0]
		for i := range n {
			s := faces(from + i)
			x := sampleOf(&s)
			b.sample(context.Background(), &x, b.now)
			b.senders = append(b.senders, s)
			sent[s.Interface]++
		}
		b.counters = b.counters[:0]
		for device, packets := range sent {
			b.counters = append(b.counters, loader.Counter{Interface: device, Prefix: 1, Reason: loader.LeakProtected, Packets: packets, Bytes: 100 * packets})
		}
		b.readAt(time.Duration(from) * time.Millisecond)
		b.events(b.now)
	}
	if grown := int64(heap()) - int64(before); grown > 32<<20 {
		t.Errorf("%d KiB more than before", grown>>10)
	}
	for what, n := range map[string][2]int{
		"causes": {len(b.causes), causesKept}, "rows": {len(b.rows), rowsKept + othersKept + 1}, "samples": {len(b.samples), samplesKept},
		"charged": {len(b.charged), batch}, "loose": {len(b.loose), looseKept}, "fresh": {len(b.fresh), 0},
	} {
		if n[0] > n[1] {
			t.Errorf("%d %s, want at most %d", n[0], what, n[1])
		}
	}
	for _, limit := range []int{rowsKept, shownBy} {
		list := b.leaks(limit)
		var rows report.Totals
		for _, f := range list.By {
			rows.Add(f.Totals)
		}
		if list.Packets != all || rows != list.Totals || len(list.By) > limit {
			t.Errorf("%d rows hold %d packets of %d", len(list.By), rows.Packets, list.Packets)
		}
	}
}

// TestRenamed: a process that has another name each time is one row, by its
// latest.
func TestRenamed(t *testing.T) {
	b := newBook()
	for i := range 50 {
		b.leak(7, "172.31.1.10:7", 2, bound, func(s *loader.Sender) { s.Comm = fmt.Sprint("n", i) })
		b.senders[0].Comm = fmt.Sprint("n", i)
		b.readAt(time.Duration(i) * time.Second)
	}
	b.check(t, "after fifty names", "n49 100 bound")
}

// TestOthersTaken: what went to the row of all others, and turns out to be an
// incident's, is taken from there again.
func TestOthersTaken(t *testing.T) {
	b := newBook()
	for i := range rowsKept + othersKept + 10 {
		b.rows[rowKey{id: who{device: 9, pid: i}}] = &report.Finding{}
	}
	b.sys.way = Way{Route: "172.31.0.0/16 dev tun0", Table: "main", Links: []int{7}}
	b.leak(1, "172.31.1.10:7", 5)
	b.readAt(time.Second)
	if r := b.rows[rowKey{who{others: true}, report.Unknown, 0}]; r == nil || r.Packets != 5 {
		t.Fatalf("all others have %+v", r)
	}
	b.attack(1, "172.31.1.0/24", 0, time.Second)
	b.readAt(2 * time.Second)
	var sum uint64
	for _, r := range b.rows {
		sum += r.Packets
	}
	if got := b.incidents[0].exposure().Packets; got != 5 || sum != 5 {
		t.Errorf("the incident has %d, all rows %d", got, sum)
	}
}

func TestForgetNames(t *testing.T) {
	b := newBook()
	for i := range namesKept + 5 {
		b.names[100+i] = "veth"
	}
	b.names[2] = "eth0"
	b.leak(1, "172.31.1.10:7", 1)
	b.readAt(time.Second)
	if len(b.names) != 1 || b.deviceName(2) != "eth0" {
		t.Errorf("%d names are kept", len(b.names))
	}
}

func TestQuota(t *testing.T) {
	var q quota
	now, lines := start, 0
	for range 3 * quotaLines {
		if q.take(now) {
			lines++
		}
	}
	if lines != quotaLines || q.hidden(now) != 0 {
		t.Errorf("%d lines in one window", lines)
	}
	now = now.Add(quotaWindow)
	if n := q.hidden(now); n != 2*quotaLines || q.hidden(now) != 0 || !q.take(now) {
		t.Errorf("%d are said to be left out", n)
	}
}

// TestLeaksLogged: many new senders share a few lines of the log, and how many
// were left out is said.
func TestLeaksLogged(t *testing.T) {
	var out bytes.Buffer
	j := New(Options{Probe: &fakeProbe{}, System: &fakeSystem{}, Log: slog.New(slog.NewTextHandler(&out, nil))})
	begin := time.Now()
	for i := range 5000 {
		s := faces(i)
		x := sampleOf(&s)
		j.sample(context.Background(), &x)
	}
	most := quotaLines * int(time.Since(begin)/quotaWindow+1)
	if n := strings.Count(out.String(), "msg=leak "); n == 0 || n > most {
		t.Errorf("%d lines, want at most %d", n, most)
	}
	j.lines.window = time.Now().Add(-quotaWindow)
	j.read(context.Background())
	if !strings.Contains(out.String(), "more leaks, not logged\" senders=") {
		t.Errorf("how many were left out is not said: %s", out.String())
	}
}
