package loader

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// Senders returns who leaked, most packets first. It is a view of what changes meanwhile: those that came or gave way
// during the walk may be missing.
func (w *Witness) Senders() ([]Sender, error) {
	all := map[leakSenderKey]leakSender{}
	var err error
	for range senderWalks {
		if err = w.walkSenders(all); !errors.Is(err, ebpf.ErrIterationAborted) {
			break
		}
	}
	if err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("read senders: %w", err)
	}
	list := make([]Sender, 0, len(all))
	for key, value := range all {
		list = append(list, newSender(&key, &value))
	}
	slices.SortFunc(list, func(a, b Sender) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), a.First.Compare(b.First))
	})
	return list, nil
}

// senderWalks is how often a walk is begun again that lost its place, because the sender that it had come to gave way to
// another. What each walk found is kept.
const senderWalks = 3

func (w *Witness) walkSenders(all map[leakSenderKey]leakSender) error {
	var key leakSenderKey
	var value leakSender
	it := w.objs.Senders.Iterate()
	for it.Next(&key, &value) {
		all[key] = value
	}
	return it.Err()
}

func newSender(k *leakSenderKey, v *leakSender) Sender {
	s := Sender{
		Interface: int(k.Ifindex), Prefix: k.Prefix, Reason: Reason(k.Reason), Origin: Origin(k.Origin),
		PID: int(k.Pid), UID: int(k.Uid), Comm: text(v.Comm), Cgroup: v.Cgroup,
		Bound: int(k.Bound), Ingress: int(k.Ingress), Upper: k.Upper != 0,
		Packets: v.Packets, Bytes: v.Bytes, Dropped: v.Dropped, First: wallTime(v.First), Last: wallTime(v.Last),
		To:    netip.AddrPortFrom(address(k.Family, v.To), v.Port),
		Proto: v.Proto, TOS: v.Tos, Mark: v.Mark,
	}
	if s.Origin == Forwarded {
		s.Source = address(k.Family, k.Source)
	}
	return s
}

// Read hands each sample to f, in order, until ctx is done; then it returns nil. What was told while nobody read waits,
// as far as there is room. One Read at a time.
func (w *Witness) Read(ctx context.Context, f func(Sample)) error {
	defer context.AfterFunc(ctx, func() { w.ring.Flush() })()
	var record ringbuf.Record
	for ctx.Err() == nil {
		err := w.ring.ReadInto(&record)
		switch {
		case errors.Is(err, ringbuf.ErrFlushed):
			continue // ctx is done, or an earlier one was
		case errors.Is(err, ringbuf.ErrClosed):
			return ErrClosed
		case err != nil:
			return fmt.Errorf("read samples: %w", err)
		}
		var s leakSample
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &s); err != nil {
			return fmt.Errorf("decode sample: %w", err)
		}
		f(newSample(&s))
	}
	return nil
}

func newSample(s *leakSample) Sample {
	return Sample{
		Time: wallTime(s.Time), Interface: int(s.Ifindex), Ingress: int(s.Ingress), Bound: int(s.Bound),
		Prefix: s.Prefix, Reason: Reason(s.Reason), Origin: Origin(s.Origin), Dropped: s.Dropped != 0,
		PID: int(s.Pid), UID: int(s.Uid), Comm: text(s.Comm), Cgroup: s.Cgroup, Cookie: s.Cookie,
		Source:      netip.AddrPortFrom(address(s.Family, s.Source), s.Sport),
		Destination: netip.AddrPortFrom(address(s.Family, s.Dest), s.Dport),
		Proto:       s.Proto, TOS: s.Tos, Mark: s.Mark, Bytes: int(s.Bytes), Segments: int(s.Segments),
	}
}

// address reads an address as the programs keep it: network order, an IPv4 one in the first word.
func address(family uint8, w [4]uint32) netip.Addr {
	b := bytesOf(w)
	if family == 4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

func bytesOf(w [4]uint32) (b [16]byte) {
	for i, v := range w {
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	return b
}

func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func text(comm [16]int8) string {
	b := *(*[16]byte)(unsafe.Pointer(&comm))
	s, _, _ := bytes.Cut(b[:], []byte{0})
	return string(s)
}

func wrap(op string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
