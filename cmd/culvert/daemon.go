package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/statedir"
	"github.com/culvert-project/culvert/cmd/culvert/internal/wireguard"
	"github.com/culvert-project/culvert/enforce"
)

// serve is the whole life of the daemon: take its place, look whether it could
// do its work, enforce until the context ends, restore. Nothing is changed
// before everything that can be refused has been.
func serve(ctx context.Context, s config.Settings, log *slog.Logger, from source, hangups <-chan os.Signal) error {
	mindMemory(log)
	if !s.Audit {
		if err := permitted(); err != nil {
			return err
		}
	}
	lock, err := acquireLock(holder{PID: os.Getpid(), What: "run", Socket: s.Socket})
	if s.Audit && errors.Is(err, fs.ErrPermission) {
		lock, err = io.NopCloser(nil), nil // who may not even take the place is in nobody's way
	}
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // the kernel frees it with the process
	st, err := openState(s.StateDir)
	if err != nil {
		return err
	}
	defer st.close(log)
	for _, note := range st.journal.Notes() {
		log.Warn("journal", "path", st.journal.Path(), "note", note)
	}
	probe, err := openProbe(s, log)
	if err != nil {
		return err
	}
	l, err := control.Listen(s.Socket)
	if err != nil {
		return errors.Join(taken(err), probe.close())
	}
	e := newJoined(st, probe, s, log)
	e.reloads = &reloader{source: from, log: log, replace: e.replace, now: s}
	d := &daemon{settings: s, log: log, engine: e, hangups: hangups}
	return d.run(ctx, l)
}

// taken makes bad usage of a socket that is another's.
func taken(err error) error {
	if errors.Is(err, control.ErrTaken) {
		return withCode(exitUsage, err)
	}
	return err
}

func engineOptions(s config.Settings, log *slog.Logger) enforce.Options {
	return enforce.Options{
		Log:             log,
		Audit:           s.Audit,
		OnLoss:          s.OnLoss,
		RestoreAll:      s.RestoreAll,
		KeepUnreachable: s.KeepUnreachable,
		ProtocolName:    protocolName,
		Endpoints:       wireguard.Endpoints,
	}
}

// state is what outlives or underlies the enforcer.
type state struct {
	sys     system
	journal *enforce.FileJournal
}

// openState opens the routing system and the journal, in this order of blame.
func openState(dir string) (*state, error) {
	if err := checkStateDir(dir); err != nil {
		return nil, err
	}
	bind, err := binding()
	if err != nil {
		return nil, err
	}
	sys, err := newSystem()
	if err != nil {
		return nil, err
	}
	journal, err := enforce.OpenJournal(dir, bind, enforce.RouteCheck(sys))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("state folder %s: %w", dir, err), sys.Close())
	}
	journal.Folder(func() error { return statedir.Make(dir) })
	return &state{sys, journal}, nil
}

func (st *state) close(log *slog.Logger) {
	if err := errors.Join(st.journal.Close(), st.sys.Close()); err != nil {
		log.Warn("not closed", "err", err)
	}
}

// checkStateDir makes the state folder if need be, and tries to write there.
func checkStateDir(dir string) error {
	err := statedir.Make(dir)
	var foreign *statedir.ForeignError
	code := exitUsage
	switch {
	case err == nil:
		return nil
	case errors.As(err, &foreign):
		return usagef("state folder %w. Make it this user's alone, or choose another with --state-dir", err)
	case errors.Is(err, fs.ErrPermission):
		code = exitDenied
	}
	return withCode(code, fmt.Errorf("state folder %s cannot be written, so nothing would be given back after a crash: %w; make it writable, or choose another with --state-dir", dir, err))
}

// engine is the enforcer, joined with the witness, as the daemon uses it.
type engine interface {
	control.Engine
	Run(ctx context.Context) error
	Ready() <-chan struct{}
}

// daemon joins the enforcer, the control socket and systemd.
type daemon struct {
	settings config.Settings
	log      *slog.Logger
	engine   engine
	hangups  <-chan os.Signal // each asks for a reload; may be nil
	reloads  sync.WaitGroup   // those that SIGHUP asked for
}

// run enforces and answers until the context ends or one of the two fails. Then
// it stops answering, lets the enforcer restore, and waits for that.
func (d *daemon) run(ctx context.Context, l *control.Listener) error {
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEngine()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	own, _ := binding() // that there is one was seen when the journal was opened
	server := control.Server{Engine: d.engine, Log: d.log, Daemon: control.Daemon{PID: os.Getpid(), Program: version(), Audit: d.settings.Audit, Notes: d.settings.Notes(), Namespace: own.Namespace}}
	for _, note := range d.settings.Notes() {
		d.log.Warn(note)
	}
	enforcing := start(func() error { return d.engine.Run(engineCtx) })
	answering := start(func() error { return server.Serve(ctx, l) })
	d.begin(ctx, enforcing)
	err := d.watch(ctx, enforcing, answering)
	d.notify(sd.SdNotifyStopping)
	d.log.Info("stopping", "restore", !d.settings.Audit)
	cancel()
	err = errors.Join(err, answering.wait())
	stopEngine()
	err = errors.Join(err, enforcing.wait())
	d.reloads.Wait()
	return err
}

// begin tells systemd once the enforcer is ready, the daemon's own sessions
// among what it has judged.
func (d *daemon) begin(ctx context.Context, enforcing *task) {
	select {
	case <-d.engine.Ready():
		d.notify(sd.SdNotifyReady)
		d.log.Info("ready", "socket", d.settings.Socket, "audit", d.settings.Audit)
	case <-enforcing.done:
	case <-ctx.Done():
	}
}

// watch waits for the end, and feeds systemd's watchdog while the enforcer's
// loop answers.
func (d *daemon) watch(ctx context.Context, enforcing, answering *task) error {
	var tick <-chan time.Time
	every, err := sd.SdWatchdogEnabled(false)
	if err == nil && every > 0 {
		ticker := time.NewTicker(every / 3)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-enforcing.done:
			if enforcing.err != nil {
				return nil // it says why
			}
			return errors.New("the enforcer ended by itself")
		case <-answering.done:
			if ctx.Err() != nil {
				return nil
			}
			return errors.New("the control socket ended by itself")
		case <-d.hangups:
			d.reloads.Go(func() { _, _ = d.engine.Reload(ctx) }) // it says itself what became of it
		case <-tick:
			d.feed(ctx, every/3)
		}
	}
}

func (d *daemon) feed(ctx context.Context, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if _, err := d.engine.Status(ctx); err != nil {
		d.log.Warn("the enforcer does not answer", "err", err)
		return
	}
	d.notify(sd.SdNotifyWatchdog)
}

func (d *daemon) notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		d.log.Warn("systemd not told", "state", state, "err", err)
	}
}

// task is a function that runs beside its starter.
type task struct {
	done chan struct{} // closed at its end
	err  error         // valid then
}

func start(f func() error) *task {
	t := &task{done: make(chan struct{})}
	go func() {
		defer close(t.done)
		t.err = f()
	}()
	return t
}

func (t *task) wait() error {
	<-t.done
	return t.err
}
