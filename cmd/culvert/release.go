package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/loader"
)

const releaseLong = `Take down a guard by hand, so that what it drops may leave again.

With a daemon running it is asked: the sessions whose tunnel is away end, and the
routes that they had removed come back. Sessions whose tunnel stands go on; "culvert
down" ends them.

Without a daemon: what a killed or stopped one left in this network namespace goes
(programs, maps, links), its sessions are forgotten, and the routes that it had
removed come back, as with "culvert recover". Nothing there is a success.

A guard keeps its network namespace alive, interfaces included, when that has no
name and no process any more. --guard takes down such a one by its folder; those
of other namespaces are told of.

` + exitHelp

func newRelease(p *platform) *cobra.Command {
	s := config.Default()
	var folder string
	cmd := &cobra.Command{
		Use:     "release",
		Short:   "Take down a guard by hand",
		Long:    p.help(releaseLong),
		Example: "  culvert release\n  culvert release --state-dir /run/my-vpn --socket /run/my-vpn/culvert.sock\n  culvert release --guard /sys/fs/bpf/culvert/net-4026532176-17211",
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&folder, "guard", "", "`folder` of another network namespace's guard, to take down that alone")
	cmd.Flags().String("state-dir", s.StateDir, "`folder` with the journal")
	cmd.Flags().String("log-format", "text", "text or json")
	socketFlag(p, cmd.Flags(), &s.Socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := setChanged(cmd.Flags(), &s, "state-dir", "log-format"); err != nil {
			return err
		}
		if folder != "" {
			return releaseOther(cmd, folder)
		}
		return errors.Join(release(cmd, s), tellOthers(cmd))
	}
	return cmd
}

// release asks the daemon, or does it itself where there is none.
func release(cmd *cobra.Command, s config.Settings) error {
	resp, err := control.Ask(cmd.Context(), s.Socket, control.Request{Op: control.Release})
	switch {
	case errors.Is(err, control.ErrAway):
		return releaseLeft(cmd, s)
	case err != nil:
		return err
	case resp.Released == nil:
		return errAnswer
	}
	for _, tunnel := range resp.Released.Tunnels {
		if err := say(cmd.OutOrStdout(), "%s: released\n", tunnel); err != nil {
			return err
		}
	}
	return say(cmd.OutOrStdout(), "%s given back\n", count(int(resp.Released.Routes), "route"))
}

// releaseOther takes down the guard of another network namespace.
func releaseOther(cmd *cobra.Command, folder string) error {
	err := loader.ReleaseGuard(loader.Options{}, folder)
	switch {
	case errors.Is(err, loader.ErrNoGuard):
		return usagef("--guard: %w; \"culvert release\" tells of those that there are", err)
	case err != nil:
		return releaseFailed(err)
	}
	return say(cmd.OutOrStdout(), "%s: released\n", folder)
}

// tellOthers names the guards of other network namespaces.
func tellOthers(cmd *cobra.Command) error {
	others, err := loader.OtherGuards(loader.Options{})
	if err != nil {
		return releaseFailed(err)
	}
	for _, folder := range others {
		if err := say(cmd.OutOrStdout(), "another network namespace has a guard: %s\n", folder); err != nil {
			return err
		}
	}
	return nil
}

// releaseLeft takes down what a daemon left behind: first what drops, then what
// was removed comes back.
func releaseLeft(cmd *cobra.Command, s config.Settings) error {
	if err := permitted(); err != nil {
		return err
	}
	lock, err := acquireLock(holder{PID: os.Getpid(), What: "release"})
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // the kernel frees it with the process
	log, _ := newLog(cmd, &s)
	if err := releasePins(log); err != nil {
		return err
	}
	if err := say(cmd.OutOrStdout(), "no guard holds any more\n"); err != nil {
		return err
	}
	rec, err := replay(cmd.Context(), s, log, forgetSessions)
	return showRecovered(cmd.OutOrStdout(), rec, err)
}

// forgetSessions: a daemon that is started next opens none of them again.
func forgetSessions(st *state) error {
	if err := st.journal.KeepSessions(nil); err != nil {
		return fmt.Errorf("forget sessions: %w", err)
	}
	return nil
}

func releasePins(log *slog.Logger) error {
	return releaseFailed(loader.Release(loader.Options{Logger: log}))
}

// releaseFailed says why a guard could not be taken down; nil stays nil.
func releaseFailed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, loader.ErrPrivilege):
		return withCode(exitDenied, err)
	case errors.Is(err, loader.ErrUnsupported):
		return fmt.Errorf("there are no guards: %w", err)
	}
	return fmt.Errorf("release guard: %w", err)
}
