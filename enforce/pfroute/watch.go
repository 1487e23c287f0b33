package pfroute

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
)

// readSize holds the longest message: a header and eight addresses.
const readSize = 4096

// Watch implements enforce.System.
func (s *System) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	sock, err := s.k.open()
	if err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	defer sock.Close()
	w := &watcher{System: s, edge: edge, sink: sink}
	if w.ls, err = s.links(); err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	defer context.AfterFunc(ctx, func() { sock.Close() })()
	stop := make(chan struct{})
	defer close(stop)
	go w.tick(stop)
	ready()
	return w.run(ctx, sock)
}

type watcher struct {
	*System
	edge enforce.Edge
	sink *enforce.Sink
	ls   links // as of the last message about interfaces
}

// tick says dirty now and then: the socket may lose messages in silence.
func (w *watcher) tick(stop <-chan struct{}) {
	t := time.NewTicker(w.poll)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
			w.sink.Dirty("poll")
		}
	}
}

func (w *watcher) run(ctx context.Context, sock socket) error {
	b := make([]byte, readSize)
	for {
		n, err := sock.Read(b)
		seen := time.Now()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrClosed):
			return fmt.Errorf("watch routes: %w", err)
		case err != nil:
			w.sink.Dirty("receive: " + err.Error())
			time.Sleep(10 * time.Millisecond) // an error that stays must not spin
			continue
		}
		for rest := b[:n]; len(rest) > 0; {
			m, after, ok := next(rest)
			if !ok {
				w.sink.Dirty("an announcement could not be read")
				break
			}
			rest = after
			w.message(m, seen)
		}
	}
}

func (w *watcher) message(m message, seen time.Time) {
	switch m.typ() {
	case rtmAdd, rtmChange:
		w.route(enforce.Added, m, seen)
	case rtmDelete:
		w.route(enforce.Deleted, m, seen)
	case rtmGet, rtmLosing, rtmMiss, rtmLock, rtmResolve, rtmNewMAddr, rtmDelMAddr, rtmNewMAddr2:
	case rtmNewAddr, rtmDelAddr:
		w.relink("address changed")
	case rtmIfInfo, rtmIfInfo2:
		w.relink("interface changed")
	case rtmRedirect:
		w.sink.Dirty("redirect")
	default:
		w.sink.Dirty("unknown announcement")
	}
}

// relink follows a change of interfaces, which may have taken routes with it.
func (w *watcher) relink(why string) {
	if ls, err := w.links(); err == nil {
		w.ls = ls
	}
	w.sink.Hurry(why)
}

// route takes one announcement to the edge.
func (w *watcher) route(change enforce.Change, m message, seen time.Time) {
	if m.isRoute() && m.errno() != 0 {
		return // a request that failed is repeated to its listeners too
	}
	var e entry
	switch parseEntry(m, &e, w.now()) {
	case skipped:
		return
	case unreadable:
		w.sink.Dirty("an announced route could not be read")
		return
	}
	if !w.complete(change, m, &e) || !w.ls.place(&e, m.flags()) {
		return
	}
	scratch := e.Route
	scratch.Raw = ""
	if a := w.edge(change, &scratch); a.Delete || a.Tell || a.Put != nil {
		w.answer(enforce.Event{Change: change, Answer: a, Seen: seen, Port: m.pid()}, m, &e)
	}
}

// complete finds out what a request did not say: the interface of its gateway,
// and all that a change left as it was.
func (w *watcher) complete(change enforce.Change, m message, e *entry) bool {
	if change == enforce.Deleted || (m.typ() == rtmAdd && (e.Hop.Link != 0 || e.Type != plan.Unicast)) {
		e.Raw = string(m)
		return true
	}
	if w.lookup(e) {
		return true
	}
	if m.typ() == rtmChange {
		w.sink.Dirty("a changed route is not there any more")
		return false
	}
	e.Hop.Link, e.Raw = w.ls.toward(e.Hop.Via), string(m)
	return true
}

// lookup replaces the entry by the one that stands in its place.
func (w *watcher) lookup(e *entry) bool {
	list, _, err := w.read()
	if err != nil {
		w.sink.Dirty(err.Error())
		return false
	}
	old := find(list, e.at)
	if old == nil {
		return false
	}
	*e = *old
	return true
}

// answer carries out what the edge said: put, then delete.
func (w *watcher) answer(ev enforce.Event, m message, e *entry) {
	if now := *e; ev.Change == enforce.Added && w.lookup(&now) && now.Hop == e.Hop && now.Type == e.Type {
		*e = now // as the kernel keeps it, whole
	}
	ev.Route = e.Route
	w.mu.Lock()
	if put := ev.Answer.Put; put != nil {
		var going []plan.Route
		if ev.Answer.Delete {
			going = append(going, ev.Route)
		}
		ev.Idle, ev.Err = idle(w.put(put, going))
		ev.Readded = !ev.Idle && ev.Err == nil
	}
	if ev.Answer.Delete {
		var err error
		ev.Idle, err = idle(w.remove(&ev.Route))
		ev.Removed = !ev.Idle && err == nil
		ev.Err = errors.Join(ev.Err, err)
	}
	w.mu.Unlock()
	ev.Done = time.Now()
	ev.Process = w.k.process(ev.Port)
	w.sink.Tell(ev)
}

// idle tells an error apart from there having been nothing to do.
func idle(err error) (bool, error) {
	if errors.Is(err, enforce.ErrAlready) {
		return true, nil
	}
	return false, err
}
