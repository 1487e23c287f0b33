package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"golang.org/x/sys/unix"
)

// groups are what the multicast socket hears of.
var groups = []int{
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_NEXTHOP,
}

// receiveBuffer is asked for with SO_RCVBUFFORCE: a batch of 100,000 routes
// overflows the default buffer even with a fast reader, this one holds a
// million announcements.
const receiveBuffer = 64 << 20

// backlog is how many events may wait to have their process named.
const backlog = 1024

// Watch implements enforce.System. The loop runs on an OS thread of its own.
func (s *System) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	w := &watcher{self: s.changes.port, edge: edge, sink: sink, named: make(chan enforce.Event, backlog), before: &s.before, buffer: s.buffer}
	if err := w.open(ctx, s.ns); err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	defer w.close()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(woken); w.wake() })
	defer func() {
		if !stop() {
			<-woken // a late wake would write into whatever file has the eventfd's number next
		}
	}()
	finished := make(chan struct{})
	go func() { defer close(finished); w.name() }()
	ready()
	w.run(ctx)
	close(w.named)
	<-finished
	return nil
}

type watcher struct {
	before *atomic.Pointer[map[uint32]bool] // System.before
	self   uint32                           // port of the System's own changes, which are not judged
	buffer int                              // System.buffer
	edge   enforce.Edge
	sink   *enforce.Sink
	named  chan enforce.Event

	in    *socket // hears
	out   *socket // answers
	event int     // eventfd that ends a wait
	poll  []unix.PollFd
	nh    *nexthopCache
	route plan.Route // scratch of the message being judged
	ns    *namespace
}

func (w *watcher) open(ctx context.Context, ns *namespace) (err error) {
	w.ns, w.event = ns, -1
	if w.in, err = ns.open(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.out, err = ns.open(); err != nil {
		return err
	}
	if w.event, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("open eventfd: %w", err)
	}
	w.poll = []unix.PollFd{{Fd: int32(w.in.fd), Events: unix.POLLIN}, {Fd: int32(w.event), Events: unix.POLLIN}}
	if err = w.subscribe(); err != nil {
		return err
	}
	return w.readNexthops(ctx)
}

func (w *watcher) subscribe() error {
	if unix.SetsockoptInt(w.in.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, w.buffer) != nil {
		// Without CAP_NET_ADMIN: what net.core.rmem_max allows. Overruns are noticed.
		_ = unix.SetsockoptInt(w.in.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, w.buffer)
	}
	// What is not passed over is found to be ours when it is read.
	_ = passOver(w.in, w.self)
	for _, g := range groups {
		err := unix.SetsockoptInt(w.in.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		if err != nil && g != unix.RTNLGRP_NEXTHOP { // nexthop objects: since Linux 5.3
			return fmt.Errorf("subscribe to rtnetlink group %d: %w", g, err)
		}
	}
	return nil
}

func (w *watcher) readNexthops(ctx context.Context) error {
	sock, err := w.ns.open()
	if err != nil {
		return err
	}
	defer sock.close()
	c := newNexthopCache()
	sock.begin(rtmGetNexthop, unix.NLM_F_DUMP)
	sock.out = append(sock.out, make([]byte, nhmLen)...)
	err = sock.dump(ctx, func(m *message) bool { c.add(m.body); return true })
	w.nh = c
	switch {
	case errors.Is(err, errInterrupted):
		w.sink.Dirty("nexthop objects changed while they were read")
	case err != nil && !errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("dump nexthop objects: %w", err)
	}
	return nil
}

func (w *watcher) close() {
	for _, s := range []*socket{w.in, w.out} {
		if s != nil {
			s.close()
		}
	}
	if w.event >= 0 {
		unix.Close(w.event)
	}
}

// wake ends the wait of run.
func (w *watcher) wake() {
	unix.Write(w.event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// run reads until the context ends. Its thread is niced up, where that is
// allowed, so that a busy machine delays the answer less.
func (w *watcher) run(ctx context.Context) {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
	// The thread ends with this goroutine: its priority is nobody else's.
	for ctx.Err() == nil {
		n, err := w.in.receive()
		switch {
		case err == nil:
			w.datagram(w.in.in[:n])
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			unix.Poll(w.poll, -1)
		default:
			w.missed(ctx, err)
		}
	}
}

// missed is what every receive error comes to. ENOBUFS is an overrun: anything
// may have been lost, announcements of nexthop objects too.
func (w *watcher) missed(ctx context.Context, err error) {
	w.sink.Dirty("receive: " + err.Error())
	if e := w.readNexthops(ctx); e != nil {
		w.sink.Dirty(e.Error())
	}
	if err != unix.ENOBUFS {
		time.Sleep(10 * time.Millisecond) // an error that stays must not spin
	}
}

func (w *watcher) datagram(b []byte) {
	seen := time.Now()
	for {
		hdr, body, rest, ok := nextMessage(b)
		if !ok {
			if len(b) > 0 {
				w.sink.Dirty("an announcement could not be read")
			}
			return
		}
		b = rest
		switch hdr.Type {
		case unix.RTM_NEWROUTE:
			w.answer(enforce.Added, &hdr, body, seen)
		case unix.RTM_DELROUTE:
			w.answer(enforce.Deleted, &hdr, body, seen)
		default:
			w.other(hdr.Type, body)
		}
	}
}

// other takes in what is no route: a hint to read the table.
//
// A nexthop object that is replaced turns its routes without a word about them, and a
// dump cannot be asked for those of one object. To answer at once, the edge path would
// have to keep a copy of each such route: memory that whoever adds routes chooses. So
// the level path answers, at once when it has been quiet, and what it
// finds counts as exposed since this announcement.
func (w *watcher) other(typ uint16, body []byte) {
	switch typ {
	case rtmNewNexthop:
		w.nh.add(body)
		w.sink.Dirty("nexthop object changed")
	case rtmDelNexthop:
		w.nh.remove(body)
		w.sink.Dirty("nexthop object deleted")
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if link, carries := parseLinkState(typ, body); !carries {
			w.nh.flush(link) // the kernel does so in silence
		}
		w.sink.Hurry("interface changed")
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		w.sink.Dirty("address changed")
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		w.sink.Dirty("rule changed")
	}
}

// answer is the edge path: judge, put, delete. Nothing in it waits, allocates
// or logs until the answer has been given.
func (w *watcher) answer(change enforce.Change, hdr *unix.NlMsghdr, body []byte, seen time.Time) {
	if hdr.Pid == w.self { // the kernel's word: nobody else can have our port
		return
	}
	switch parseRoute(body, &w.route, w.nh.hops) {
	case parsed:
	case otherTable:
		if t := w.before.Load(); t != nil && (*t)[tableOf(body)] {
			w.sink.Dirty("a table that is asked before main changed")
		}
		return
	default:
		w.sink.Dirty("an announced route could not be read")
		return
	}
	a := w.edge(change, &w.route)
	if !a.Delete && !a.Tell && a.Put == nil {
		return
	}
	ev := enforce.Event{Change: change, Answer: a, Seen: seen, Port: hdr.Pid}
	if a.Put != nil {
		ev.Idle, ev.Err = idle(addRoute(w.out, a.Put, true, 0))
		ev.Readded = !ev.Idle && ev.Err == nil
	}
	if a.Delete {
		var err error
		ev.Idle, err = idle(deleteRoute(w.out, body, &w.route))
		ev.Removed = !ev.Idle && enforce.Changed(err)
		ev.Err = errors.Join(ev.Err, err)
	}
	ev.Done = time.Now()
	w.sink.Count(&ev)
	w.tell(ev, body)
}

// idle tells an error apart from there having been nothing to do.
func idle(err error) (bool, error) {
	var d *enforce.DisplacedError
	switch {
	case errors.As(err, &d):
		return errors.Is(err, enforce.ErrAlready), err
	case errors.Is(err, enforce.ErrAlready):
		return true, nil
	}
	return false, err
}

// tell passes an answered route on. Who asked for it is looked up elsewhere.
func (w *watcher) tell(ev enforce.Event, body []byte) {
	ev.Route = w.route
	ev.Route.Raw = string(body)
	select {
	case w.named <- ev:
	default:
		w.sink.Tell(ev)
	}
}

// name looks up who changed a route while that process is likely to live, and
// hands the events on in order.
func (w *watcher) name() {
	for ev := range w.named {
		ev.Process = processName(ev.Port)
		w.sink.Tell(ev)
	}
}

// processName returns the name of the process that a netlink port id usually
// is, or "". Port ids beyond the largest process id are made up by the kernel
// for a process's second socket.
func processName(port uint32) string {
	const maxPID = 1 << 22 // PID_MAX_LIMIT, include/linux/threads.h
	if port == 0 || port > maxPID {
		return ""
	}
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(port), 10) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
