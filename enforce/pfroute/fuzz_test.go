package pfroute

import (
	"testing"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// FuzzEntries reads dumps and announcements: no bytes may break the parser, and
// what it reads can be given back and is then read as the same.
func FuzzEntries(f *testing.F) {
	k := ground()
	f.Add(k.dump())
	for _, g := range []string{goldenDefault, goldenConnected, goldenSix} {
		f.Add(unhex(f, g))
	}
	ls, _ := newSystem(fakeRIB{k}).links()
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _ := entries(b, ls, time.Unix(0, 0))
		for _, e := range list {
			m, ok := buildAdd(message(e.Raw), 1, e.Expires)
			if !ok {
				t.Fatalf("cannot be given back: %x", e.Raw)
			}
			var again entry
			if len(m) > 0xffff || parseEntry(m, &again, time.Unix(0, 0)) != parsed {
				t.Fatalf("given back as %x, which cannot be read", m)
			}
			if again.Dst != e.Dst || again.host != e.host || again.Type != e.Type || (e.Type == plan.Unicast && again.Hop.Via != e.Hop.Via) {
				t.Fatalf("%+v was given back as %+v", e, again)
			}
		}
	})
}

func FuzzLinks(f *testing.F) {
	b, _ := ground().interfaces()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		ls, _ := parseLinks(b)
		for _, l := range ls {
			for _, a := range l.Addrs {
				if !a.IsValid() {
					t.Fatalf("an address that is none: %+v", l)
				}
			}
		}
	})
}
