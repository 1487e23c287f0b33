package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/cmd/culvert/internal/witness"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/loader"
)

// probe is the witness of packets, or why there is none.
type probe struct {
	witness *loader.Witness // nil when there is none
	reason  string
}

func (p probe) close() error {
	if p.witness == nil {
		return nil
	}
	return p.witness.Close()
}

// openProbe opens the witness as far as the settings want one. Where leaks are
// to be stopped, or it is required, it is an error not to have it.
func openProbe(s config.Settings, log *slog.Logger) (probe, error) {
	if s.Witness == config.WitnessOff {
		// A guard that nobody can see would drop packets for no reason.
		if err := loader.Release(loader.Options{Logger: log}); err != nil && !errors.Is(err, loader.ErrUnsupported) {
			log.Warn("a guard of an earlier daemon may still hold", "err", err)
		}
		return probe{reason: "not asked for (--witness off)"}, nil
	}
	w, err := loader.Open(loader.Options{Logger: log})
	if err == nil {
		return probe{witness: w}, nil
	}
	log.Debug("no witness", "err", err)
	err = brief(err)
	switch {
	case s.Drops():
		err = fmt.Errorf("leaks cannot be stopped, for the witness of packets (eBPF) is unavailable: %w; leave out --on-leak drop and --on-loss guard to run without", err)
	case s.Witness == config.WitnessRequire:
		err = fmt.Errorf("the witness of packets (eBPF) is unavailable: %w; leave out --witness require to run without", err)
	case errors.Is(err, loader.ErrUnsupported): // nobody here expects one
		return probe{reason: err.Error()}, nil
	default:
		log.Warn("no witness of packets: leaks are not counted", "err", err)
		return probe{reason: err.Error()}, nil
	}
	if errors.Is(err, loader.ErrPrivilege) {
		return probe{}, withCode(exitDenied, err)
	}
	return probe{}, err
}

// brief leaves out where a privilege was missed, once it is said which.
func brief(err error) error {
	text, _, cut := strings.Cut(err.Error(), "): ")
	if !errors.Is(err, loader.ErrPrivilege) || !cut {
		return err
	}
	return &briefError{text + ")", err}
}

// briefError is an error in fewer words.
type briefError struct {
	text string
	err  error
}

func (e *briefError) Error() string { return e.text }
func (e *briefError) Unwrap() error { return e.err }

// joined is the enforcer and the witness as one engine.
type joined struct {
	*enforce.Enforcer
	join    *witness.Join
	log     *slog.Logger
	ready   chan struct{}
	reloads *reloader
}

func newJoined(st *state, p probe, s config.Settings, log *slog.Logger) *joined {
	e := &joined{log: log, ready: make(chan struct{})}
	w := witness.Options{
		Reason: p.reason, Own: s.Sessions, Log: log,
		Rules:  witness.Rules{Drop: s.Drops(), Guard: s.Drops() && s.OnLoss == enforce.LossGuard, For: s.GuardFor, Audit: s.Audit},
		System: &asker{sys: st.sys, names: map[int]linkName{}},
		Wake:   func(why string) { e.Wake(why) },
		End:    func(tunnel string) { e.guardEnded(tunnel) },
	}
	if p.witness != nil {
		w.Probe = p.witness
	}
	e.join = witness.New(w)
	opt := engineOptions(s, log)
	opt.Own, opt.Sessions = s.Sessions, st.journal
	opt.Observe, opt.OnPolicy = e.join.Observe, e.join.Protect
	e.Enforcer = enforce.New(st.sys, st.journal, opt)
	return e
}

// Run enforces and counts until the context ends. Then the enforcer gives back
// what it had removed, and the witness goes; a guard stays as it is.
func (e *joined) Run(ctx context.Context) error {
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	outer, stopJoin := context.WithCancel(context.WithoutCancel(ctx))
	defer stopJoin()
	joining := start(func() error { return e.join.Run(outer) })
	enforcing := start(func() error { return e.Enforcer.Run(inner) })
	e.begin(ctx, enforcing)
	select {
	case <-enforcing.done:
		if e.join.Freeze(false) {
			e.log.Error("the enforcer ended by itself: what is dropped stays so until the daemon is started again, or \"culvert release\"")
		}
	case <-ctx.Done():
		if e.join.Freeze(true) {
			e.log.Warn("the guard stays: leaks are dropped until the daemon is started again, or \"culvert release\"")
		}
	}
	stop()
	err := enforcing.wait()
	stopJoin()
	return errors.Join(err, joining.wait(), e.join.Close())
}

// begin puts what is protected now in place of an adopted guard, once the
// enforcer has made the table right.
func (e *joined) begin(ctx context.Context, enforcing *task) {
	select {
	case <-e.Enforcer.Ready():
	case <-enforcing.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-e.Known():
		e.join.Begin()
		close(e.ready)
	case <-enforcing.done:
	case <-ctx.Done():
	}
}

// Ready is closed when what is protected is in force.
func (e *joined) Ready() <-chan struct{} { return e.ready }

// Open opens a session. It has failed when its leaks should be stopped and are not.
func (e *joined) Open(ctx context.Context, s enforce.Session) (enforce.SessionStatus, error) {
	st, err := e.Enforcer.Open(ctx, s)
	if err == nil {
		e.join.Patch(&st)
	}
	return st, err
}

// Close ends a session, also one that only an earlier daemon's guard still holds.
func (e *joined) Close(ctx context.Context, tunnel string) (enforce.SessionStatus, error) {
	return e.end(ctx, tunnel, e.Enforcer.Close)
}

// Leave ends a connection: what the configuration says of the tunnel waits for the next.
func (e *joined) Leave(ctx context.Context, tunnel string) (enforce.SessionStatus, error) {
	return e.end(ctx, tunnel, e.Enforcer.Leave)
}

func (e *joined) end(ctx context.Context, tunnel string, how func(context.Context, string) (enforce.SessionStatus, error)) (enforce.SessionStatus, error) {
	waited := e.join.Forget(tunnel)
	defer e.join.Ending(tunnel)()
	st, err := how(ctx, tunnel)
	if errors.Is(err, enforce.ErrNoSession) && waited {
		return enforce.SessionStatus{Tunnel: tunnel, State: enforce.Restored}, nil
	}
	return st, err
}

// Reload reads the configuration again.
func (e *joined) Reload(ctx context.Context) (enforce.Reloaded, error) { return e.reloads.reload(ctx) }

// replace puts other sessions in the place of the configuration's.
func (e *joined) replace(ctx context.Context, own []enforce.Session) (enforce.Reloaded, error) {
	done, err := e.Enforcer.Reload(ctx, own)
	for _, tunnel := range done.Closed {
		e.join.Forget(tunnel)
	}
	return done, err
}

// Status is a moment's view of routes and packets.
func (e *joined) Status(ctx context.Context) (report.Status, error) {
	st, err := e.Enforcer.Status(ctx)
	if err != nil {
		return report.Status{}, err
	}
	return e.join.Report(ctx, st)
}

// Leaks is all that leaked.
func (e *joined) Leaks(ctx context.Context) (*report.Leaks, report.Witness, error) {
	return e.join.Leaks(ctx)
}

// Watch tells of what happens.
func (e *joined) Watch(ctx context.Context, f func(report.Event) error) error {
	return e.join.Watch(ctx, f)
}

// errNoGuard: there is nothing to release.
var errNoGuard = errors.New("no guard holds now: every tunnel is there; \"culvert down --tunnel INTERFACE\" ends a session")

// Release ends the sessions of all tunnels that are away while a guard holds.
func (e *joined) Release(ctx context.Context) (report.Released, error) {
	_, state, err := e.Leaks(ctx)
	if err != nil {
		return report.Released{}, err
	}
	rel := report.Released{Tunnels: []string{}}
	for _, tunnel := range state.Holding {
		st, err := e.Leave(ctx, tunnel)
		if err != nil {
			return rel, err
		}
		rel.Tunnels, rel.Routes = append(rel.Tunnels, tunnel), rel.Routes+int(st.Restored)
	}
	if len(rel.Tunnels) == 0 {
		return rel, errNoGuard
	}
	return rel, nil
}

// guardEnded gives back the routes of a session whose guard has lasted its time.
func (e *joined) guardEnded(tunnel string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := e.Leave(ctx, tunnel); err != nil && !errors.Is(err, enforce.ErrNoSession) {
		e.log.Error("end guard", "tunnel", tunnel, "err", err)
	}
}

// asker tells the witness of ways and names. It belongs to one goroutine.
type asker struct {
	sys   system
	names map[int]linkName
}

type linkName struct {
	name string
	at   time.Time
}

// errWay: the routes were not read from where packets take them.
var errWay = errors.New("no system that tells of ways")

// namesFor is how long a name is good, namesKept how many are kept.
const (
	namesFor  = time.Second
	namesKept = 4096
)

// Way asks which way a packet would go.
func (a *asker) Way(ctx context.Context, p witness.Packet) (witness.Way, error) {
	return wayOf(ctx, a.sys, a.Link, p)
}

// Link names an interface, "" when it is gone.
func (a *asker) Link(index int) string {
	now := time.Now()
	if n, ok := a.names[index]; ok && now.Sub(n.at) < namesFor {
		return n.name
	}
	var n linkName
	if i, err := net.InterfaceByIndex(index); err == nil {
		n = linkName{i.Name, now}
	}
	if len(a.names) >= namesKept {
		clear(a.names) // of interfaces that come and go
	}
	a.names[index] = linkName{n.name, now}
	return n.name
}

// Cgroup names the cgroup of a living process, "" where there is none.
func (a *asker) Cgroup(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	return ""
}
