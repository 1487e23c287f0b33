package testenv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Filter chooses IP packets. The zero value chooses all of both families;
// each field that is set narrows it.
type Filter struct {
	Dst   netip.Prefix // destination; the zero value is any
	Src   netip.Prefix // source; the zero value is any
	Proto uint8        // IP protocol (IPPROTO_UDP = 17, …) of packets without IPv6 extension headers; 0 is any
	Port  uint16       // destination port of TCP and UDP; 0 is any
	// Marker must occur within the first 192 bytes of the packet; empty is any.
	Marker string
	// Direction chooses packets of a [Capture]; the zero value, In, are
	// those that arrive. A [Tun] has one direction only and ignores it.
	Direction Direction
}

// Direction is a packet's as seen by the interface it is captured on.
type Direction int

// Directions of a capture.
const (
	In   Direction = iota // received, also those addressed to other hosts
	Out                   // sent
	Both                  // either
)

// To is the filter of all packets for a destination: an address or a prefix
// ("172.31.0.0/16"). It panics on anything else.
func To(dst string) Filter {
	if addr, err := netip.ParseAddr(dst); err == nil {
		return Filter{Dst: netip.PrefixFrom(addr, addr.BitLen())}
	}
	return Filter{Dst: netip.MustParsePrefix(dst)}
}

// snapLen is how much of a packet is looked at.
const snapLen = 192

// packet is what a filter can know of an IP packet.
type packet struct {
	src, dst netip.Addr
	proto    uint8
	port     uint16 // destination port, 0 if none
	data     []byte // the first bytes
}

// parsePacket reads an IP packet's headers; ok is false for anything else.
func parsePacket(b []byte) (p packet, ok bool) {
	if len(b) < 1 {
		return packet{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return packet{}, false
}

func parse4(b []byte) (packet, bool) {
	header := int(b[0]&0xf) * 4
	if len(b) < 20 || header < 20 || len(b) < header {
		return packet{}, false
	}
	p := packet{
		src:   netip.AddrFrom4([4]byte(b[12:16])),
		dst:   netip.AddrFrom4([4]byte(b[16:20])),
		proto: b[9],
		data:  b,
	}
	if binary.BigEndian.Uint16(b[6:])&0x1fff == 0 { // only the first fragment has ports
		p.port = dstPort(p.proto, b[header:])
	}
	return p, true
}

func parse6(b []byte) (packet, bool) {
	if len(b) < 40 {
		return packet{}, false
	}
	return packet{
		src:   netip.AddrFrom16([16]byte(b[8:24])),
		dst:   netip.AddrFrom16([16]byte(b[24:40])),
		proto: b[6],
		port:  dstPort(b[6], b[40:]),
		data:  b,
	}, true
}

func dstPort(proto uint8, transport []byte) uint16 {
	if (proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP) || len(transport) < 4 {
		return 0
	}
	return binary.BigEndian.Uint16(transport[2:])
}

// match reports whether the filter, leaving Direction aside, chooses p.
func (f *Filter) match(p packet) bool {
	return (!f.Dst.IsValid() || f.Dst.Contains(p.dst)) &&
		(!f.Src.IsValid() || f.Src.Contains(p.src)) &&
		(f.Proto == 0 || f.Proto == p.proto) &&
		(f.Port == 0 || f.Port == p.port) &&
		(f.Marker == "" || bytes.Contains(p.data, []byte(f.Marker)))
}

// Count is what a [Counter] has seen. A packet that the sender left to the
// interface to cut up (TCP segmentation offload) is one packet.
type Count struct {
	Packets uint64
	Bytes   uint64 // of whole IP packets
	// Lost packets passed unseen because the reader was too slow. They need
	// not have matched the filter. It is known after Stop; the count is exact
	// when it is zero.
	Lost uint64
}

// String is one line for messages.
func (c Count) String() string {
	s := fmt.Sprintf("%d packets, %d bytes", c.Packets, c.Bytes)
	if c.Lost > 0 {
		s += fmt.Sprintf(" (%d more unseen)", c.Lost)
	}
	return s
}

// Counter counts the packets that a filter chooses, from the moment it was
// made. Its methods may be called by several goroutines at once.
type Counter struct {
	filter Filter
	stop   func() error // ends the source after what has already arrived is counted

	mu    sync.Mutex // guards count and ended
	count Count
	ended bool
}

// Count is what was counted so far.
func (c *Counter) Count() Count {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// Packets is Count().Packets.
func (c *Counter) Packets() uint64 { return c.Count().Packets }

// Wait waits until at least n packets were counted or timeout has passed, and
// returns the count.
func (c *Counter) Wait(n uint64, timeout time.Duration) Count {
	Until(timeout, func() bool { return c.Packets() >= n })
	return c.Count()
}

// Settle waits until no packet was counted for quiet, at most ten times as
// long, and returns the count. Use it before saying that nothing arrived.
func (c *Counter) Settle(quiet time.Duration) Count {
	last, since := c.Count(), time.Now()
	Until(10*quiet, func() bool {
		if now := c.Count(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) >= quiet
	})
	return c.Count()
}

// Stop ends the counting, after everything that has reached the interface
// was counted, and returns the final count. Stopping twice is allowed.
func (c *Counter) Stop() (Count, error) {
	c.mu.Lock()
	ended := c.ended
	c.ended = true
	c.mu.Unlock()
	var err error
	if !ended {
		err = c.stop()
	}
	return c.Count(), err
}

// observe counts a packet of size bytes of which data are the first.
func (c *Counter) observe(data []byte, size int) {
	p, ok := parsePacket(data[:min(len(data), snapLen)])
	if !ok || !c.filter.match(p) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count.Packets++
	c.count.Bytes += uint64(size)
}

func (c *Counter) lost(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count.Lost += n
}
