//go:build linux

package testenv

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestFilterMatch(t *testing.T) {
	t.Parallel()
	udp := []byte{0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 172, 31, 1, 10, 0x12, 0x34, 0, 53, 0, 16, 0, 0, 's', 'e', 'c', 'r', 'e', 't', 0, 0}
	p, ok := parsePacket(udp)
	if !ok || p.port != 53 || p.dst != addr("172.31.1.10") || p.src != addr("10.0.0.1") {
		t.Fatalf("%+v, %v", p, ok)
	}
	for name, c := range map[string]struct {
		f    Filter
		want bool
	}{
		"zero":          {Filter{}, true},
		"destination":   {To("172.31.0.0/16"), true},
		"other":         {To("172.31.1.11"), false},
		"other family":  {To("::/0"), false},
		"source":        {Filter{Src: netip.MustParsePrefix("10.0.0.0/8")}, true},
		"other source":  {Filter{Src: netip.MustParsePrefix("11.0.0.0/8")}, false},
		"protocol":      {Filter{Proto: 17}, true},
		"other proto":   {Filter{Proto: 6}, false},
		"port":          {Filter{Port: 53}, true},
		"source's port": {Filter{Port: 0x1234}, false},
		"marker":        {Filter{Marker: "secret"}, true},
		"no marker":     {Filter{Marker: "public"}, false},
	} {
		if got := c.f.match(p); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	udp[6] = 1 // a later fragment has no ports
	if p, ok := parsePacket(udp); !ok || p.port != 0 {
		t.Errorf("fragment: %+v, %v", p, ok)
	}
}

// TestPrefixWords compares the kernel filter's arithmetic with netip's.
func TestPrefixWords(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		var a, b [16]byte
		binary.BigEndian.PutUint64(a[:], r.Uint64())
		b = a
		if flip := r.IntN(129); flip < 128 {
			b[flip/8] ^= 0x80 >> (flip % 8)
		}
		prefix := netip.PrefixFrom(netip.AddrFrom16(a), r.IntN(129))
		if r.IntN(2) == 0 {
			prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:4])), r.IntN(33))
		}
		other, _ := netip.AddrFromSlice(b[:prefix.Addr().BitLen()/8])
		match := true
		for i, w := range prefixWords(prefix) {
			match = match && binary.BigEndian.Uint32(other.AsSlice()[4*i:])&w.mask == w.value
		}
		if match != prefix.Contains(other) {
			t.Fatalf("%s and %s: got %v", prefix, other, match)
		}
	}
}

func FuzzPacket(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 20})
	f.Add([]byte{0x4f, 19: 0})
	f.Add([]byte{0x60, 43: 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parsePacket(b); ok != p.dst.IsValid() {
			t.Errorf("ok %v, destination %v", ok, p.dst)
		}
	})
}

func FuzzHop(f *testing.F) {
	f.Add(make([]byte, 12))
	f.Add(append(make([]byte, 12), 8, 0, 4, 0, 1, 0, 0, 0))
	f.Add(append(make([]byte, 12), 4, 0, 4, 0))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = parseHop(b)
		_, _ = linkName(b)
	})
}
