package witness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

// Probe is the loader's witness.
type Probe interface {
	Set(cfg loader.Config) error
	Counters() ([]loader.Counter, error)
	Senders() ([]loader.Sender, error)
	Status() (loader.Status, error)
	Read(ctx context.Context, f func(loader.Sample)) error
	Close() error
}

// Options of a join. System is required.
type Options struct {
	Probe  Probe  // nil watches no packets
	Reason string // why Probe is nil
	Rules  Rules
	Own    []enforce.Session // that the daemon opens itself
	System System            // asked from Run's goroutine alone
	Log    *slog.Logger      // nil discards

	Wake func(why string)    // asks the enforcer to read the table; must not wait
	End  func(tunnel string) // ends a session whose guard has lasted long enough; called on a goroutine of its own
}

// Join is where incidents and packets meet. One goroutine, Run, owns the ledger;
// all methods may be called from any.
type Join struct {
	opt  Options
	log  *slog.Logger
	keep *keeper // nil without a probe

	incidents chan enforce.Incident
	samples   chan loader.Sample
	calls     chan func(context.Context)
	done      chan struct{}
	missed    atomic.Uint64 // incidents and samples that found no room

	// The rest belongs to the goroutine.
	ledger *ledger
	next   time.Time // of the next reading
	feed   feed
	lines  quota
	failed error // of the last reading
}

// How many may wait for the goroutine.
const (
	incidentsWaiting = 1024
	samplesWaiting   = 4096
)

// The times between readings.
const (
	idleRead   = time.Second
	sampleRead = 100 * time.Millisecond
)

// New returns a join. An adopted guard stays in force until Begin.
func New(opt Options) *Join {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	j := &Join{
		opt: opt, log: opt.Log,
		incidents: make(chan enforce.Incident, incidentsWaiting),
		samples:   make(chan loader.Sample, samplesWaiting),
		calls:     make(chan func(context.Context)), done: make(chan struct{}),
		feed: feed{},
	}
	known := func(uint32) (owner, bool) { return owner{}, false }
	if opt.Probe != nil {
		j.keep = newKeeper(opt.Probe, opt.Rules, j.log)
		known = j.keep.ownerOf
		if st, err := opt.Probe.Status(); err == nil && st.Adopted {
			j.keep.hold(opt.Own)
			j.log.Info("guard adopted: it stays in force", "folder", st.Guarded)
		}
	}
	j.ledger = newLedger(opt.System, known)
	j.ledger.measured = opt.Probe != nil
	return j
}

// Protect is for enforce.Options.OnPolicy: what is protected is in force when it
// returns, before the enforcer acts.
func (j *Join) Protect(p enforce.Protection) {
	if j.keep != nil {
		j.keep.protect(p)
	}
}

// Observe is for enforce.Options.Observe. It never waits.
func (j *Join) Observe(in enforce.Incident) {
	select {
	case j.incidents <- in:
	default:
		j.missed.Add(1)
	}
}

// Begin says that the daemon's own sessions are open: what the enforcer
// protects now takes the place of an adopted guard.
func (j *Join) Begin() {
	if j.keep != nil {
		j.keep.begin()
	}
}

// Freeze is called before the enforcer stops, or after it stopped by itself; then
// asked is false. A guard that holds a session stays in force. Freeze reports
// whether one does, and is pinned so that it outlives this process.
func (j *Join) Freeze(asked bool) bool {
	if j.keep == nil || !j.keep.freeze(asked) {
		return false
	}
	st, err := j.opt.Probe.Status()
	if err == nil && st.Unpinned != "" {
		err = errors.New(st.Unpinned)
	}
	if err != nil {
		j.log.Error("the guard ends with this process: leaks are dropped no longer", "err", err)
	}
	return err == nil
}

// Forget lets go of a session that only an earlier daemon's guard still holds.
func (j *Join) Forget(tunnel string) bool { return j.keep != nil && j.keep.forget(tunnel) }

// Ending says that somebody ends the session on a tunnel, until the result is
// called. What leaks of one that ends by itself, because its tunnel vanished, is
// counted on for a while.
func (j *Join) Ending(tunnel string) (done func()) {
	if j.keep == nil {
		return func() {}
	}
	return j.keep.end(tunnel)
}

// Close ends the witness, once the enforcer has stopped. What Freeze kept goes
// on without this process.
func (j *Join) Close() error {
	if j.keep == nil {
		return nil
	}
	return errors.Join(j.keep.release(), j.opt.Probe.Close())
}

// Run joins until the context ends.
func (j *Join) Run(ctx context.Context) error {
	defer close(j.done)
	if j.opt.Probe != nil {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go j.listen(ctx)
	}
	timer := time.NewTimer(idleRead)
	defer timer.Stop()
	var renew <-chan time.Time
	if j.keep != nil {
		ticks, stop := newTicker(j.renewal())
		defer stop()
		renew = ticks
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-j.samples:
			j.sample(ctx, &s)
		case in := <-j.incidents:
			j.incident(in)
		case call := <-j.calls:
			call(ctx)
		case <-renew:
			j.renew()
		case <-timer.C:
			j.read(ctx)
		}
		timer.Reset(max(0, time.Until(j.next)))
	}
}

// renewal is how often the policy's deadline is renewed, and a failed setting
// tried again.
func (j *Join) renewal() time.Duration {
	if p := j.keep.pace(); p > 0 {
		return min(max(p, 50*time.Millisecond), 30*time.Second)
	}
	return 2 * time.Second
}

func (j *Join) renew() {
	for _, tunnel := range j.keep.tick() {
		j.log.Warn("guard has lasted its time", "tunnel", tunnel, "for", j.opt.Rules.For)
		go j.opt.End(tunnel)
	}
}

// listen takes samples, and wakes the level path at once.
func (j *Join) listen(ctx context.Context) {
	var w waker
	err := j.opt.Probe.Read(ctx, func(s loader.Sample) {
		if s.Reason.Leak() && w.due(&s, time.Now()) {
			j.opt.Wake("leak seen")
		}
		select {
		case j.samples <- s:
		default:
			j.missed.Add(1)
		}
	})
	if err != nil && ctx.Err() == nil {
		j.log.Error("no samples any more: counts stay exact", "err", err)
	}
}

func (j *Join) sample(ctx context.Context, s *loader.Sample) {
	if !s.Reason.Leak() {
		return
	}
	now := time.Now()
	if j.ledger.sample(ctx, s, now) && j.lines.take(now) {
		j.log.Warn("leak", "interface", j.ledger.deviceName(s.Interface), "to", s.Destination, "process", s.Comm, "pid", s.PID,
			"origin", s.Origin, "why", j.ledger.causes[sampleWho(s)].text, "dropped", s.Dropped)
	}
	j.wantRead(now.Add(sampleRead))
}

func (j *Join) incident(in enforce.Incident) {
	t := track(in, time.Now())
	j.ledger.incident(t)
	j.wantRead(t.due)
}

// wantRead brings the next reading nearer.
func (j *Join) wantRead(at time.Time) {
	if at.Before(j.next) {
		j.next = at
	}
}

// read takes in the counters and tells what is new.
func (j *Join) read(ctx context.Context) {
	if j.opt.Probe != nil {
		j.failed = j.count(ctx)
	}
	now := time.Now()
	j.next = now.Add(idleRead)
	j.feed.tell(j.ledger.events(now))
	if n := j.lines.hidden(now); n > 0 {
		j.log.Warn("more leaks, not logged", "senders", n)
	}
	if at := j.ledger.untold(); !at.IsZero() {
		j.wantRead(at)
	}
}

func (j *Join) count(ctx context.Context) error {
	counters, err := j.opt.Probe.Counters()
	if err != nil {
		return err
	}
	senders, err := j.opt.Probe.Senders()
	j.ledger.read(ctx, counters, senders, time.Now()) // exact without them; they only say who
	return err
}

// do runs f on the goroutine and waits for it.
func (j *Join) do(ctx context.Context, f func(context.Context)) error {
	ran := make(chan struct{})
	select {
	case j.calls <- func(loop context.Context) { defer close(ran); f(loop) }:
		<-ran
		return nil
	case <-j.done:
		return errors.New("the witness has ended")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Report joins a view of the enforcer with a new reading.
func (j *Join) Report(ctx context.Context, st enforce.Status) (out report.Status, err error) {
	err = j.do(ctx, func(ctx context.Context) {
		j.read(ctx)
		out = j.report(st)
	})
	return out, err
}

// Leaks is everything that leaked, by a new reading; nil when nothing is measured.
func (j *Join) Leaks(ctx context.Context) (out *report.Leaks, state report.Witness, err error) {
	err = j.do(ctx, func(ctx context.Context) {
		j.read(ctx)
		if state = j.state(); j.opt.Probe != nil {
			out = j.ledger.leaks(rowsKept)
		}
	})
	return out, state, err
}

func (j *Join) report(st enforce.Status) report.Status {
	out := report.Status{Routes: st.Totals, Waiting: st.Waiting, Witness: j.state()}
	for _, s := range st.Sessions {
		rs := report.Session{SessionStatus: s}
		j.Patch(&rs.SessionStatus)
		if j.opt.Probe != nil {
			rs.Leaks = j.ledger.ofTunnel(s.Tunnel)
			rs.OnLeak = j.keep.done(s.Tunnel)
		}
		out.Sessions = append(out.Sessions, rs)
	}
	for _, in := range st.Incidents {
		ri := report.Incident{Incident: in}
		if j.opt.Probe != nil {
			ri.Exposure = j.ledger.exposure(in.ID)
		}
		out.Incidents = append(out.Incidents, ri)
	}
	if j.opt.Probe != nil {
		out.Leaks = j.ledger.leaks(shownBy)
	}
	return out
}

// Patch fails a session whose leaks should be stopped and are not.
func (j *Join) Patch(st *enforce.SessionStatus) {
	if j.keep == nil || !j.opt.Rules.drops() {
		return
	}
	if _, err := j.keep.state(); err != nil {
		st.State, st.Error = enforce.Failed, "leaks are not stopped as asked: "+err.Error()
	}
}

// state is what the witness can say of itself.
func (j *Join) state() report.Witness {
	if j.opt.Probe == nil {
		return report.Witness{Mode: report.Off, Reason: j.opt.Reason, Interfaces: []report.Watched{}}
	}
	w := report.Witness{Mode: j.keep.mode(), Interfaces: []report.Watched{}}
	if j.opt.Rules.drops() && w.Mode != report.Drop {
		w.Asked = report.Drop
	}
	holding, keepErr := j.keep.state()
	st, err := j.opt.Probe.Status()
	if err := errors.Join(keepErr, j.failed, err, j.wrong(&st)); err != nil {
		w.Error = err.Error()
	}
	w.Holding = holding
	w.Guard, w.Until, w.Adopted = st.Guarded, st.Until, st.Adopted
	w.Unseen = st.Unseen
	w.Senders, w.Gap, w.Suppressed, w.Lost = st.Senders, st.Early, st.Suppressed, st.Lost+j.missed.Load()
	for _, i := range st.Interfaces {
		w.Interfaces = append(w.Interfaces, watched(i))
		if i.Mode == loader.ModeNone {
			w.Unwatched++
		}
	}
	return w
}

// wrong is what keeps drops from being what was asked for.
func (j *Join) wrong(st *loader.Status) error {
	if !j.opt.Rules.drops() {
		return nil
	}
	var errs []error
	if st.Unpinned != "" {
		errs = append(errs, errors.New("not pinned, drops end with the daemon: "+st.Unpinned))
	}
	for _, i := range st.Interfaces {
		if i.Err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", i.Name, i.Err))
		}
	}
	return errors.Join(errs...)
}

func watched(i loader.Interface) report.Watched {
	w := report.Watched{
		Interface: i.Name, Mode: i.Mode.String(), Gap: i.Gap.Microseconds(), Displaced: i.Displaced, By: i.Rival,
	}
	if i.Err != nil {
		w.Error = i.Err.Error()
	}
	return w
}

// Watch hands events to f until the context or the join ends, or f fails.
func (j *Join) Watch(ctx context.Context, f func(report.Event) error) error {
	var s *subscriber
	var err error
	if doErr := j.do(ctx, func(context.Context) { s, err = j.feed.join() }); doErr != nil {
		return doErr
	}
	if err != nil {
		return err
	}
	defer func() { _ = j.do(context.Background(), func(context.Context) { j.feed.leave(s) }) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-j.done:
			return nil
		case ev := <-s.events:
			if err := f(ev); err != nil {
				return fmt.Errorf("watch: %w", err)
			}
		}
	}
}
