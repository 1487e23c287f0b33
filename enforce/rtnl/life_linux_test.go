package rtnl

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/enforce"
)

var lifeRoutes = flag.Int("life", 200_000, "how many routes BenchmarkLife has out at once")

// BenchmarkLife connects over many routes that must come back and disconnects, with
// the journal in a file, beside iproute2 that deletes and adds the same. It tells the
// processor time of each: a busy machine does not change that much.
func BenchmarkLife(b *testing.B) {
	x, n := newBench(b), *lifeRoutes
	batch := func(verb string) {
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, "route %s 10.%d.%d.%d via 192.168.1.66\n", verb, i>>16, i>>8&255, i&255)
		}
		cmd := x.ns.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(text.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		took := cmd.ProcessState
		b.ReportMetric((took.UserTime()+took.SystemTime()).Seconds()*1000, "ms-ip-"+verb)
	}
	for range b.N {
		batch("add")
		batch("del")
		batch("append")
		x.life(b, n)
	}
}

// life is one session over what stands.
func (x *bench) life(b *testing.B, n int) {
	var sys *System
	var err error
	x.ns.Run(b, func() { sys, err = New() })
	if err != nil {
		b.Fatal(err)
	}
	defer sys.Close()
	j, err := enforce.OpenJournal(b.TempDir(), enforce.Binding{Boot: "bench", Namespace: "1#1"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	ctx, cancel := context.WithCancel(b.Context())
	e := enforce.New(sys, j, enforce.Options{})
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	<-e.Ready()
	spent := func(what string, f func()) {
		start := processorTime(b)
		f()
		b.ReportMetric((processorTime(b)-start).Seconds()*1000, "ms-"+what)
	}
	spent("connect", func() {
		st, err := e.Open(ctx, enforce.Session{Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
		if err != nil || len(st.Held) != n {
			b.Fatalf("%d held, %v", len(st.Held), err)
		}
	})
	spent("close", func() {
		if st, err := e.Close(ctx, "tun0"); err != nil || st.Restored != uint64(n) {
			b.Fatalf("%d restored, %v", st.Restored, err)
		}
	})
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}

func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
