package pfroute

import (
	"context"
	"testing"
	"time"

	"golang.org/x/net/route"

	"github.com/culvert-project/culvert/enforce/enforcetest"
)

// TestReal makes every call that changes nothing on the Mac it runs on, and
// holds the reading of its table against golang.org/x/net/route's.
func TestReal(t *testing.T) {
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Facts(t.Context())
	if err != nil || len(f.Links) == 0 || f.Uptime <= 0 {
		t.Errorf("facts %+v, %v", f, err)
	}
	if b, err := s.Binding(); err != nil || b.Boot == "" {
		t.Errorf("binding %+v, %v", b, err)
	}
	sock, err := s.k.open()
	if err != nil {
		t.Fatal(err)
	}
	_ = sock.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, _ = sock.Read(make([]byte, readSize))
	if err := sock.Close(); err != nil {
		t.Error(err)
	}
	for r, err := range s.Table(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		t.Log(enforcetest.Text(r))
	}
	compareReal(t, s)
}

func compareReal(t *testing.T, s *System) {
	t.Helper()
	rib, err := s.k.routes()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := route.ParseRIB(route.RIBTypeRoute, rib)
	if err != nil {
		t.Fatal(err)
	}
	for _, msg := range theirs {
		want, isRoute := msg.(*route.RouteMessage)
		m, rest, ok := next(rib)
		if !ok || !isRoute {
			t.Fatalf("message %+v was read as %x", msg, m)
		}
		rib = rest
		var e entry
		got := parseEntry(m, &e, time.Now())
		if got == unreadable || int(m.flags()) != want.Flags || int(native.Uint16(m[offIndex:])) != want.Index {
			t.Errorf("outcome %d of %x, which is %+v", got, m, want)
		}
	}
	if len(rib) != 0 {
		t.Errorf("%d bytes were not read", len(rib))
	}
}
