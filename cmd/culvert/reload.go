package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
	"github.com/culvert-project/culvert/enforce"
)

const reloadLong = `Make the running daemon read its configuration file again, as SIGHUP does, and say
what became of it. All of it is taken or nothing: a file that is wrong in any way
changes nothing.

The file's sessions are opened, changed and closed to match it; those that stay
are protected throughout. Sessions of VPN hooks stay, joined with what the file
says of their tunnels now; those of "culvert up" stay as they are. Of the settings
only log_level can change while the daemon runs; another one that differs is
refused, and needs a restart.

--config takes the socket's path from that file.

` + exitHelp

func newReload(p *platform) *cobra.Command {
	var socket, file string
	cmd := &cobra.Command{
		Use:     "reload",
		Short:   "Make the daemon read its configuration file again",
		Long:    reloadLong,
		Example: p.help("  culvert reload\n  culvert reload --config {{.File}}"),
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&file, "config", "", "YAML `file` that names the socket")
	socketFlag(p, cmd.Flags(), &socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if file != "" && !cmd.Flags().Changed("socket") {
			s := config.Default()
			if err := s.ReadFile(file); err != nil {
				return err
			}
			socket = s.Socket
		}
		resp, err := control.Ask(cmd.Context(), socket, control.Request{Op: control.Reload})
		switch {
		case err != nil:
			return err
		case resp.Reloaded == nil:
			return errAnswer
		}
		return sayReloaded(cmd.OutOrStdout(), resp.Reloaded)
	}
	return cmd
}

func sayReloaded(w io.Writer, r *enforce.Reloaded) error {
	var parts []string
	for _, part := range []struct {
		word    string
		tunnels []string
	}{{"opened", r.Opened}, {"changed", r.Changed}, {"closed", r.Closed}, {"as before", r.Kept}} {
		if len(part.tunnels) > 0 {
			parts = append(parts, part.word+" "+strings.Join(part.tunnels, ", "))
		}
	}
	if len(parts) == 0 {
		parts = []string{"no session"}
	}
	return say(w, "reloaded: %s\n", strings.Join(parts, "; "))
}

// source is where the daemon's settings came from, to be read again.
type source struct {
	file  string                          // "" where there is none
	read  func() (config.Settings, error) // file and flags together
	level *slog.LevelVar                  // of the log
}

// reloader reads the configuration again and puts it in force.
type reloader struct {
	source
	log     *slog.Logger
	replace func(context.Context, []enforce.Session) (enforce.Reloaded, error)

	mu  sync.Mutex      // one reload at a time; guards now
	now config.Settings // in force
}

// reloadTimeout bounds a reload: the table is read and made right.
const reloadTimeout = 30 * time.Second

// reload takes all of the configuration or nothing, and says which to the log, to
// systemd and to whoever asks.
func (r *reloader) reload(ctx context.Context) (enforce.Reloaded, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	r.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
	defer r.notify(sd.SdNotifyReady)
	done, err := r.take(ctx)
	if err != nil {
		r.log.Error("configuration not reloaded: nothing has changed", "file", r.file, "err", err)
		if exitCode(err) == exitUsage {
			err = &control.Error{Code: control.CodeInput, Message: err.Error() + "; nothing has changed"}
		}
		return done, err
	}
	r.log.Info("configuration reloaded", "file", r.file, "opened", done.Opened, "changed", done.Changed, "closed", done.Closed, "kept", done.Kept)
	return done, nil
}

func (r *reloader) take(ctx context.Context) (enforce.Reloaded, error) {
	if r.file == "" {
		return enforce.Reloaded{}, usagef("the daemon was started without --config, so there is no file to read again; restart it to change its flags")
	}
	// A pipe would be waited for without end, and nobody writes to it twice.
	if info, err := os.Stat(r.file); err == nil && !info.Mode().IsRegular() {
		return enforce.Reloaded{}, &session.Error{Input: r.file, Text: "is not a regular file; put the file back, or restart the daemon"}
	}
	s, err := r.read()
	if err != nil {
		return enforce.Reloaded{}, err
	}
	if where, keys := s.Fixed(&r.now); len(keys) > 0 {
		return enforce.Reloaded{}, &session.Error{Where: where, Text: fmt.Sprintf(
			"%s cannot change while the daemon runs; put the old value back, or restart the daemon", strings.Join(keys, ", "))}
	}
	done, err := r.replace(ctx, s.Sessions)
	if err != nil {
		return done, fmt.Errorf("%s: %w", r.file, err)
	}
	r.level.Set(logLevel(&s))
	r.now = s
	return done, nil
}

func (r *reloader) notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		r.log.Warn("systemd not told", "state", state, "err", err)
	}
}
