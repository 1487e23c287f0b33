package loader

import (
	"errors"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// output is what a command says in the namespace.
func (n *node) output(line string) string {
	n.t.Helper()
	words := strings.Fields(line)
	var out []byte
	n.try(func() (err error) {
		out, err = exec.Command(words[0], words[1:]...).Output()
		return err
	})
	return string(out)
}

// pinged has the peer ask the host something, and reports how much of it arrived.
func (s *stage) pinged() (n int) {
	s.t.Helper()
	var c net.PacketConn
	s.host.try(func() (err error) {
		c, err = net.ListenPacket("udp4", "10.9.0.1:9000")
		return err
	})
	defer c.Close()
	s.peer.start("udp-unconnected", "10.9.0.1:9000").Wait()
	for n < rounds {
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, _, err := c.ReadFrom(make([]byte, 100)); err != nil {
			break
		}
		n++
	}
	return n
}

// TestBesideIngress: an ingress qdisc takes a filter for the way out, and runs it on the way in. Nothing of ours goes there,
// nothing of the user's is touched, and the interface is told of as one that is not watched.
func TestBesideIngress(t *testing.T) {
	s := newStage(t, Options{modes: []Mode{ModeClsact}, noEarly: true, Recheck: 50 * time.Millisecond})
	s.w.Close()
	s.host.run("tc qdisc add dev h0 handle ffff: ingress")
	s.host.run("tc filter add dev h0 ingress protocol ip prio 7 u32 match u8 0 0 flowid 1:1")
	users := func() string {
		return s.host.output("tc qdisc show dev h0") + s.host.output("tc filter show dev h0 ingress")
	}
	before := users()
	s.w = s.host.open(s.w.opts)
	cfg := full(9999)
	cfg.Action = Drop
	set(t, s.w, cfg)
	if i := s.iface("h0"); i.Mode != ModeNone || !errors.Is(i.Err, errIngress) {
		t.Errorf("%s, %v", i.Mode, i.Err)
	}
	if d := s.w.knows(s.dev); d != (leakDevice{}) || s.w.isKnown(s.dev) {
		t.Errorf("the early hook is told that the interface is watched: %+v", d)
	}
	if got := s.pinged(); got != rounds {
		t.Errorf("%d of %d came in", got, rounds)
	}
	if got := s.reasons(); got[LeakProtected] != 0 {
		t.Errorf("what came in is counted: %v", got)
	}
	if after := users(); after != before {
		t.Errorf("it was\n%s\nand is\n%s", before, after)
	}
	s.unseen(func() { // a recheck in between would put a qdisc of our own there
		s.host.run("tc qdisc del dev h0 ingress")
		s.host.run("tc qdisc add dev h0 clsact")
	})
	soon(t, "it is watched where there is a way out", func() bool { return s.iface("h0").Mode == ModeClsact && s.iface("h0").Err == nil })
	s.send(0, false)
	s.w.Close()
	if got := s.host.output("tc qdisc show dev h0"); !strings.Contains(got, "clsact") {
		t.Errorf("the user's empty clsact was taken away: %s", got)
	}
}

// unseen runs f while the witness looks at nothing.
func (s *stage) unseen(f func()) {
	s.t.Helper()
	held, end, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.w.do(func() error { close(held); <-end; return nil }) }()
	defer func() {
		close(end)
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	}()
	select {
	case <-held:
		f()
	case err := <-ended:
		ended <- err
	}
}

func (w *Witness) isKnown(index int) bool {
	var d leakDevice
	return w.objs.Devices.Lookup(uint32(index), &d) == nil
}

// TestIngressAppears: a qdisc that is put in the place of ours takes our filter away, and is none to go on with.
func TestIngressAppears(t *testing.T) {
	s := newStage(t, Options{modes: []Mode{ModeClsact}, noEarly: true, Recheck: time.Hour})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Action: Drop})
	s.send(0, false)
	s.host.run("tc qdisc del dev h0 clsact")
	s.host.run("tc qdisc add dev h0 ingress")
	if err := s.w.do(s.w.recheck); err != nil {
		t.Fatal(err)
	}
	if i := s.iface("h0"); i.Mode != ModeNone || !errors.Is(i.Err, errIngress) {
		t.Errorf("%s, %v", i.Mode, i.Err)
	}
	if s.w.isKnown(s.dev) {
		t.Error("the interface is still known as watched")
	}
}

// TestLeftInIngress: what an earlier version put into an ingress qdisc is taken off, and only that.
func TestLeftInIngress(t *testing.T) {
	s := newStage(t, Options{modes: []Mode{ModeClsact}, PinDir: pinDir(t), noEarly: true})
	set(t, s.w, Config{Prefixes: protect(stagePrefixes...), Guard: true})
	s.w.do(func() error {
		return errors.Join(s.w.devices[s.dev].hook.detach(), netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: s.dev, Handle: qdiscHandle, Parent: netlink.HANDLE_INGRESS,
		}}), clsact{&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: s.dev, Parent: netlink.HANDLE_MIN_EGRESS, Handle: filterHandle, Protocol: 3, Priority: 1},
			Name:        filterName, DirectAction: true,
		}}.update(s.w.objs.LeakEther))
	})
	s.host.run("tc filter add dev h0 ingress protocol ip prio 7 u32 match u8 0 0 flowid 1:1")
	if got := s.host.output("tc filter show dev h0 ingress"); !strings.Contains(got, filterName) {
		t.Fatalf("the stage is not set: %s", got)
	}
	s.w.Close()
	s.w = s.host.open(s.w.opts)
	got := s.host.output("tc filter show dev h0 ingress")
	if strings.Contains(got, filterName) || !strings.Contains(got, "u32") {
		t.Errorf("the filters are\n%s", got)
	}
	if i := s.iface("h0"); i.Mode != ModeNone || !errors.Is(i.Err, errIngress) {
		t.Errorf("%s, %v", i.Mode, i.Err)
	}
}
