package rtnl

import (
	"bytes"
	"slices"
	"testing"

	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// The corpora under testdata/fuzz are messages of real kernels, and what was
// found to break earlier versions.

// known resolves the nexthop objects that the corpora name.
var known = nexthops{1: {{Link: 2}}, 3: {{Link: 2}, {Link: 3}}, 6: {{Link: 2}}, 7: nil}

// FuzzRoute: whatever parses can be added and deleted, and what is asked for
// then reads as the same route.
func FuzzRoute(f *testing.F) {
	f.Fuzz(func(t *testing.T, msg []byte) {
		var r plan.Route
		if parseRoute(msg, &r, known) != parsed {
			return
		}
		r.Raw = string(msg)
		if err := new(System).CheckRoute(&r); err != nil {
			t.Fatalf("a journal that holds it would be called damaged: %v", err)
		}
		sameAgain(t, "add", appendAdd(nil, msg, &r, 0), r)
		sameAgain(t, "delete", appendDelete(nil, msg, &r), r)
		for hop := range r.Hops() {
			leg := r.WithHops(hop)
			reads(t, appendDeleteLeg(nil, msg, &leg))
		}
		withOnlink(appendAdd(nil, msg, &r, 1))
		reads(t, without(appendAdd(nil, msg, &r, 0), unix.RTA_PREFSRC))
		setTable(slices.Clone(msg), 254)
		tableOf(msg)
	})
}

// sameAgain reads a request back.
func sameAgain(t *testing.T, what string, body []byte, want plan.Route) {
	t.Helper()
	var got plan.Route
	if status := parseRoute(body, &got, nexthops{want.NexthopID: nil}); status != parsed {
		t.Fatalf("%s of %+v does not read (%d): %x", what, want, status, body)
	}
	if want.NexthopID != 0 { // it stands for the legs, and for the type
		got.Hop, got.More, got.Type = want.Hop, want.More, want.Type
	}
	if !got.Same(want) {
		t.Fatalf("%s\n%+v of\n%+v\n%x", what, got, want, body)
	}
}

// reads checks that a request consists of whole attributes.
func reads(t *testing.T, body []byte) {
	t.Helper()
	for rest := body[rtmLen:]; len(rest) > 0; {
		_, next, ok := nextAttr(rest)
		if !ok {
			t.Fatalf("half an attribute: %x", body)
		}
		rest = next
	}
}

// FuzzMessage: a datagram falls apart into messages that are parts of it.
func FuzzMessage(f *testing.F) {
	f.Fuzz(func(t *testing.T, datagram []byte) {
		for b := datagram; ; {
			hdr, body, rest, ok := nextMessage(b)
			if !ok {
				return
			}
			if len(body) != int(hdr.Len)-hdrLen || len(rest) >= len(b) || !bytes.HasSuffix(b, rest) {
				t.Fatalf("%d bytes of body, %d left of %d: %+v", len(body), len(rest), len(b), hdr)
			}
			b = rest
		}
	})
}

// FuzzNexthop: the cache of nexthop objects survives any announcement, and
// forgets what is deleted.
func FuzzNexthop(f *testing.F) {
	f.Fuzz(func(t *testing.T, first, second []byte) {
		c := newNexthopCache()
		c.add(first)
		c.add(second)
		id, _, _, ok := parseNexthop(second)
		if !ok {
			return
		}
		if _, has := c.hops[id]; !has {
			t.Fatalf("object %d is not known", id)
		}
		c.remove(second)
		if _, has := c.hops[id]; has {
			t.Fatalf("object %d is still known", id)
		}
	})
}

// FuzzLink never panics, and what it reads has a name without an end in it.
func FuzzLink(f *testing.F) {
	f.Fuzz(func(t *testing.T, msg []byte) {
		l, ok := parseLink(msg)
		if ok && (bytes.ContainsRune([]byte(l.Name+l.Type.Kind), 0)) {
			t.Fatalf("%q %q", l.Name, l.Type.Kind)
		}
	})
}

// FuzzAddress: an address that is read is one.
func FuzzAddress(f *testing.F) {
	f.Fuzz(func(t *testing.T, msg []byte) {
		if _, p, _, ok := parseAddress(msg); ok && !p.IsValid() {
			t.Fatalf("%v", p)
		}
	})
}

// FuzzRule: any rule that is read says which table it asks.
func FuzzRule(f *testing.F) {
	f.Fuzz(func(t *testing.T, msg []byte) {
		r, ok := parseRule(msg)
		if ok && (r.Text == "" || r.Family != 4 && r.Family != 6 || r.Dst != r.Dst.Masked() || r.Suppress < -1) {
			t.Fatalf("%+v", r)
		}
	})
}
