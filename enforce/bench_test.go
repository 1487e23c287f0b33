package enforce_test

import (
	"fmt"
	"testing"

	"github.com/culvert-project/culvert/enforce"
)

// BenchmarkHeld tells what n held routes cost: to connect over them, an attack
// beside them (per event, all that the loop does for it), the status, and to
// disconnect.
func BenchmarkHeld(b *testing.B) {
	for _, n := range []int{0, 1_000, 20_000, 200_000} {
		b.Run(fmt.Sprintf("connect/held=%d", n), func(b *testing.B) { benchSession(b, n, true) })
		b.Run(fmt.Sprintf("close/held=%d", n), func(b *testing.B) { benchSession(b, n, false) })
		b.Run(fmt.Sprintf("attack/held=%d", n), func(b *testing.B) { benchAttack(b, n) })
		b.Run(fmt.Sprintf("status/held=%d", n), func(b *testing.B) { benchStatus(b, n) })
	}
}

// benchSession times one end of a session over n routes that must come back.
func benchSession(b *testing.B, n int, connect bool) {
	e, _ := run(b, newBulk(n), &memory{}, enforce.Options{})
	timed := func(on bool) {
		if on {
			b.StartTimer()
		} else {
			b.StopTimer()
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		timed(connect)
		_, err := e.Open(b.Context(), bulkSession)
		timed(!connect)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.Close(b.Context(), "tun0"); err != nil {
			b.Fatal(err)
		}
	}
}

func benchAttack(b *testing.B, n int) {
	sys := newBulk(n)
	e, _ := run(b, sys, &memory{}, enforce.Options{})
	open(b, e, bulkSession)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		sys.attack(bulkRoute(1<<20 + i%4096))
		if i%1024 == 1023 || i == b.N-1 { // no more than there is room for
			for len(sys.sink.Events()) > 0 {
				if _, err := e.Sessions(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
}

func benchStatus(b *testing.B, n int) {
	e, _ := run(b, newBulk(n), &memory{}, enforce.Options{})
	open(b, e, bulkSession)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := e.Status(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
