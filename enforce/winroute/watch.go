package winroute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/culvert-project/culvert/enforce"
)

// backlog is how many notifications may wait. Windows calls from threads of its
// own, which must not be held up.
const backlog = 4096

// notice is one notification.
type notice struct {
	change uint32
	row    row
	hint   string // instead: something that is no route changed
	seen   time.Time
}

// Watch implements enforce.System.
func (s *System) Watch(ctx context.Context, edge enforce.Edge, sink *enforce.Sink, ready func()) error {
	w := &watcher{System: s, edge: edge, sink: sink, notices: make(chan notice, backlog)}
	stop, err := s.k.notify(w.route, w.hint)
	if err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	defer stop()
	if err := w.prime(); err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	t := time.NewTicker(s.poll)
	defer t.Stop()
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-w.notices:
			w.take(n)
		case <-t.C:
			sink.Dirty("poll")
		}
	}
}

type watcher struct {
	*System
	edge    enforce.Edge
	sink    *enforce.Sink
	notices chan notice

	around scene
	known  map[key]row // as last seen: a deletion only names its victim
}

// route and hint are called by Windows.
func (w *watcher) route(change uint32, r row) {
	w.note(notice{change: change, row: slices.Clone(r), seen: time.Now()})
}
func (w *watcher) hint(what string) { w.note(notice{hint: what}) }

func (w *watcher) note(n notice) {
	select {
	case w.notices <- n:
	default:
		w.sink.Dirty("notifications overran")
	}
}

// prime reads what stands when the watch begins.
func (w *watcher) prime() (err error) {
	if w.around, err = w.scene(); err != nil {
		return err
	}
	list, err := w.rows()
	w.known = make(map[key]row, len(list))
	for _, r := range list {
		if k, ok := r.key(); ok {
			w.known[k] = r
		}
	}
	return err
}

func (w *watcher) take(n notice) {
	if n.hint != "" {
		if sc, err := w.scene(); err == nil {
			w.around = sc
		}
		w.sink.Dirty(n.hint)
		return
	}
	k, ok := n.row.key()
	if !ok {
		w.sink.Dirty("a notification could not be read")
		return
	}
	switch n.change {
	case changeDelete:
		w.deleted(k, n)
	case changeAdd, changeParameter:
		w.added(k, n)
	}
}

// added looks a route up and takes it to the edge. A changed metric may let
// another route win, which only the whole table shows.
func (w *watcher) added(k key, n notice) {
	if err := w.k.entry(n.row); err != nil {
		w.sink.Dirty("a route came and went")
		return
	}
	w.known[k] = n.row
	w.judge(enforce.Added, n)
	if n.change == changeParameter {
		w.sink.Dirty("a route changed")
	}
}

func (w *watcher) deleted(k key, n notice) {
	if last, ok := w.known[k]; ok {
		n.row = last
		delete(w.known, k)
	}
	w.judge(enforce.Deleted, n)
}

// judge asks the edge and carries out its answer: put, then delete.
func (w *watcher) judge(change enforce.Change, n notice) {
	r, ok := w.parse(&w.around, n.row)
	if !ok {
		return
	}
	scratch := r
	scratch.Raw = ""
	a := w.edge(change, &scratch)
	if !a.Delete && !a.Tell && a.Put == nil {
		return
	}
	ev := enforce.Event{Change: change, Route: r, Answer: a, Seen: n.seen}
	w.mu.Lock()
	if a.Put != nil {
		ev.Idle, ev.Err = idle(w.put(a.Put))
		ev.Readded = !ev.Idle && ev.Err == nil
	}
	if a.Delete {
		var err error
		ev.Idle, err = idle(w.remove(&ev.Route))
		ev.Removed = !ev.Idle && err == nil
		ev.Err = errors.Join(ev.Err, err)
	}
	w.mu.Unlock()
	ev.Done = time.Now()
	w.sink.Tell(ev)
}

// idle tells an error apart from there having been nothing to do.
func idle(err error) (bool, error) {
	if errors.Is(err, enforce.ErrAlready) {
		return true, nil
	}
	return false, err
}
