package winroute

import (
	"testing"
)

// FuzzRow reads rows: none may break the parser, and what it reads can be given
// back and is then read as the same.
func FuzzRow(f *testing.F) {
	for _, g := range []string{goldenDefault, goldenRA, goldenOwn} {
		f.Add(unhex(f, g))
	}
	sc, _ := newSystem(ground()).scene()
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _ := rows[row](b, rowLen)
		for _, r := range list {
			p, ok := sc.parse(r)
			if !ok {
				continue
			}
			back, ok := again(string(r))
			if !ok {
				t.Fatalf("cannot be given back: %x", r)
			}
			if q, ok := sc.parse(back); !ok || q != p {
				t.Fatalf("%+v was given back as %+v", p, q)
			}
		}
	})
}

// FuzzScene reads the interfaces' rows.
func FuzzScene(f *testing.F) {
	k := ground()
	links, _ := k.links()
	addresses, _ := k.addresses()
	interfaces, _ := k.interfaces()
	f.Add(links[:linkLen], addresses[:addressLen], interfaces[:ifaceLen])
	f.Fuzz(func(t *testing.T, links, addresses, interfaces []byte) {
		sc, _ := parseScene(links, addresses, interfaces)
		for _, l := range sc.links {
			for _, a := range l.Addrs {
				if !a.IsValid() {
					t.Fatalf("an address that is none: %+v", l)
				}
				sc.kept(key{dst: a.Masked()})
				sc.metric(l.luid, a)
			}
		}
	})
}
