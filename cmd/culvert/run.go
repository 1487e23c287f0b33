package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
)

const runLong = `Run the daemon in the foreground.

With --tunnel and --protect it opens that session itself, waits for the
interface when it is not there yet, and again when it has vanished. Without
them it waits for "culvert up" and the VPN's hooks.

SIGTERM and SIGINT: every removed route is restored, then the daemon exits with
0. A second signal ends it at once; the journal in the state folder knows what is
still out, and "culvert recover" gives it back. SIGHUP: the configuration file is
read again, as by "culvert reload"; protection goes on.

{{if .Witness}}SIGUSR2 hands over to a daemon that is started next, as "systemctl restart" does:
this one exits with 0, and routes, drops and guards stay as they are until then.

The witness (eBPF) counts every packet that leaves outside its tunnel all
the same, by whatever way, and says who sent it ("culvert leaks"). It needs root,
or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; CAP_SYS_ADMIN too for a guard where no
BPF file system is mounted. --witness auto goes without it where it cannot be
had, and "culvert status" says so.

  --on-leak count     leaks are counted and let go
  --on-leak drop      leaks are counted and dropped. kill -9 of the daemon does
                      not end that, nor does its restart; SIGTERM does, and so
                      does the end of the tunnel, where --on-loss guard goes on.
                      Needs the witness.
  --on-loss restore   a tunnel that vanishes ends its session
  --on-loss guard     while it is away conflicting routes stay out and what it
                      protected is dropped, also when the daemon is killed or
                      stopped, until the tunnel is back, "culvert down", or
                      "culvert release". Leaks are dropped while the tunnel
                      stands too, whatever --on-leak says: a guard that began
                      only at its end would be late. Needs the witness.
  --guard-for 10m     drops end, and the session with them, when the tunnel has
                      been away for so long. They also end when the daemon has
                      been dead for so long (for 7/8 of it at least). Sleep of
                      the machine counts for the tunnel, not for the daemon

A guard lets pass what is excluded, the server's transport, and the link's own
DHCP and neighbour discovery. It does not outlive a reboot.

{{end}}--audit changes nothing{{if .Witness}} and drops nothing; it counts{{end}}.

One daemon serves one {{.Place}}; a second one refuses and names the
first.{{if .Witness}} Under systemd it reports readiness and feeds the watchdog.{{end}}

--config names a YAML file. Flags win over it; a session given by flags takes
the place of the one on the same tunnel. A VPN's hook on a tunnel of the file adds
what it tells of the connection (routes, servers) to what the file says, which
wins where the two contradict each other; when the connection ends the session
waits for the next. The keys of the file:

  state_dir: {{.StateDir}}
  socket: {{.Socket}}
  audit: false
{{if .Witness}}  on_loss: restore                  # or guard
  on_leak: count                    # or drop
  guard_for: 0                      # for ever
  witness: auto                     # or off, require
{{end}}  restore: preexisting              # or all
  keep_unreachable: false
  log_format: text                  # or json
  log_level: info                   # or debug
  sessions:
    - tunnel: {{.Tunnel}}
      protect: [10.0.0.0/8, 2001:db8::/32]
      exclude: [10.99.0.0/16]
      servers: ["198.51.100.7:1194/udp"]
{{if .Witness}}      server_from: [auto]           # any, host, uid:USER, mark:NUMBER
{{end}}      exclude_interfaces: [{{.Other}}]
{{if .Rules}}      other_table: []
{{end}}{{if .Witness}}      other_family: allow           # or block
{{end}}
` + exitHelp

const runExample = `  culvert run
  culvert run --tunnel {{.Tunnel}} --protect 172.31.0.0/16,fd00:31::/48 --server 198.51.100.7:1194/udp
{{if .Rules}}  culvert run --tunnel wg0 --protect 0.0.0.0/0,::/0 --other-table 0.0.0.0/0,::/0 --server 198.51.100.7:51820/udp
{{end}}  culvert run --config {{.File}} --audit`

// runSettings are the flags that stand for settings of the file.
var runSettings = [...]string{"state-dir", "socket", "audit", "on-loss", "on-leak", "guard-for", "witness", "restore", "keep-unreachable", "log-format", "log-level"}

func newRun(p *platform) *cobra.Command {
	var file string
	var sess sessionFlags
	sess.text.Rearm = true
	cmd := &cobra.Command{
		Use:     "run",
		Short:   "Run the daemon",
		Long:    p.help(runLong),
		Example: p.help(runExample),
		Args:    noArgs,
	}
	f := cmd.Flags()
	f.SortFlags = false
	sess.register(p, f)
	f.StringVar(&file, "config", "", "YAML `file` with settings and sessions; flags win")
	f.String("state-dir", p.StateDir, "`folder` for the journal of removed routes")
	f.String("socket", p.Socket, "`path` of the control socket")
	f.Bool("audit", false, "judge and report, change nothing")
	f.String("on-loss", "restore", "when a tunnel vanishes: restore or guard")
	f.String("on-leak", "count", "with packets that leave outside their tunnel: count or drop")
	f.String("guard-for", "0", "how `long` drops go on without the tunnel or the daemon, for example 10m; 0 is for ever")
	f.String("witness", "auto", "the witness of packets: auto, off or require")
	f.String("restore", "preexisting", "which removed routes come back: preexisting or all")
	f.Bool("keep-unreachable", false, "report blackhole, unreachable and prohibit routes, do not remove them")
	f.String("log-format", "text", "text or json")
	f.String("log-level", "info", "info, or debug: each judgement of the table too, and what made it due")
	p.dropFlags(f)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		settings, err := runSettingsOf(cmd, file, &sess)
		if err == nil {
			err = p.check(&settings)
		}
		if err != nil {
			return err
		}
		again := source{file: file, read: func() (config.Settings, error) {
			s, err := runSettingsOf(cmd, file, &sess)
			if err == nil {
				err = p.check(&s)
			}
			return s, err
		}}
		return runUntilSignal(cmd, settings, again)
	}
	return cmd
}

// runSettingsOf joins defaults, file and flags.
func runSettingsOf(cmd *cobra.Command, file string, sess *sessionFlags) (config.Settings, error) {
	s := config.Default()
	if file != "" {
		if err := s.ReadFile(file); err != nil {
			return s, err
		}
	}
	if err := setChanged(cmd.Flags(), &s, runSettings[:]...); err != nil {
		return s, err
	}
	if !sess.given(cmd.Flags()) {
		return s, s.Check()
	}
	parsed, err := sess.text.Parse()
	if err != nil {
		return s, err
	}
	return s, errors.Join(s.Add(parsed), s.Check())
}

// runUntilSignal runs the daemon; the first signal asks it to restore and
// stop, the second does not wait for it. SIGHUP asks it to reload.
func runUntilSignal(cmd *cobra.Command, s config.Settings, from source) error {
	signals, hangups := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(signals)
	defer signal.Stop(hangups)
	handover := make(chan os.Signal, 1)
	notifyHandover(handover)
	defer signal.Stop(handover)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	var log *slog.Logger
	log, from.level = newLog(cmd, &s)
	go func() { done <- serve(ctx, s, log, from, hangups) }()
	ended := start(func() error { return awaitEnd(done, signals, cancel, s.StateDir) })
	select {
	case <-ended.done:
		return ended.err
	case <-handover:
		// As after a kill: the journal, the pins and the routes are what the next daemon goes on from.
		log.Info("handed over: routes and drops stay for the next daemon")
		return nil
	}
}

// awaitEnd waits for the daemon: to the end, or after one signal to the end of
// its restoring, or to a second signal.
func awaitEnd(done <-chan error, signals <-chan os.Signal, stop func(), stateDir string) error {
	select {
	case err := <-done:
		return err
	case <-signals:
		stop()
	}
	select {
	case err := <-done:
		return err
	case <-signals:
		return withCode(exitWrong, fmt.Errorf("stopped before every route was restored; what is still out is written down in %s: \"culvert recover --state-dir %s\" gives it back", stateDir, stateDir))
	}
}

// newLog makes the log, and what its level is changed by.
func newLog(cmd *cobra.Command, s *config.Settings) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(logLevel(s))
	return logTo(cmd.ErrOrStderr(), s.LogJSON, level), level
}

func logTo(w io.Writer, asJSON bool, level slog.Leveler) *slog.Logger {
	opt := slog.HandlerOptions{Level: level}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, &opt))
	}
	return slog.New(slog.NewTextHandler(w, &opt))
}

func logLevel(s *config.Settings) slog.Level {
	if s.LogDebug {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
