package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
	"github.com/culvert-project/culvert/enforce"
)

func newRecover(p *platform) *cobra.Command {
	var dir, format string
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Give back what a crashed daemon had removed",
		Long: p.help(`Replay the journal that a crashed daemon left for this {{.Place}}: the
routes that it had removed come back, its own go. No daemon may be running; a
new daemon does the same when it starts. After a reboot there is nothing to do.
{{if .Witness}}A guard that the daemon left goes on dropping: "culvert release" ends that too.
{{end}}
` + exitHelp),
		Example: "  culvert recover",
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&dir, "state-dir", p.StateDir, "`folder` with the journal")
	cmd.Flags().StringVar(&format, "log-format", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s := config.Default()
		if err := setChanged(cmd.Flags(), &s, "state-dir", "log-format"); err != nil {
			return err
		}
		rec, err := recoverState(cmd, s)
		return showRecovered(cmd.OutOrStdout(), rec, err)
	}
	return cmd
}

// showRecovered prints what came back, also where err is what went wrong besides, and returns what is
// not as it should be.
func showRecovered(w io.Writer, rec enforce.Recovered, err error) error {
	p := &printer{w: w}
	if err == nil || len(rec.Restored)+len(rec.Withdrawn)+len(rec.Forgotten)+len(rec.Pending) > 0 {
		printRecovered(p, rec)
	}
	switch {
	case err != nil:
		return err
	case p.err == nil && len(rec.Pending) > 0:
		return errPending(rec)
	}
	return p.err
}

func errPending(rec enforce.Recovered) error {
	return withCode(exitWrong, fmt.Errorf("%s could not be given back now; what is out stays in the journal, run \"culvert recover\" again when its interface is up", count(len(rec.Pending), "route")))
}

// count says how many, of what one is called.
func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func recoverState(cmd *cobra.Command, s config.Settings) (enforce.Recovered, error) {
	if err := permitted(); err != nil {
		return enforce.Recovered{}, err
	}
	lock, err := acquireLock(holder{PID: os.Getpid(), What: "recover"})
	if err != nil {
		return enforce.Recovered{}, err
	}
	defer lock.Close() //nolint:errcheck // the kernel frees it with the process
	log, _ := newLog(cmd, &s)
	return replay(cmd.Context(), s, log, func(*state) error { return nil })
}

// replay gives back what the journal holds, after first was called with it. A state folder that is
// not there holds nothing.
func replay(ctx context.Context, s config.Settings, log *slog.Logger, first func(*state) error) (rec enforce.Recovered, err error) {
	if _, err := os.Stat(s.StateDir); errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	st, err := openState(s.StateDir)
	if err != nil {
		return rec, err
	}
	defer st.close(log)
	for _, note := range st.journal.Notes() {
		log.Warn(note)
	}
	if err := first(st); err != nil {
		return rec, err
	}
	rec, err = enforce.Recover(ctx, st.sys, st.journal, engineOptions(s, log))
	if n := st.journal.Damaged(); n > 0 {
		err = errors.Join(err, withCode(exitWrong, fmt.Errorf("the journal was damaged in %s: what was named there was not given back; the routes that could be read were", count(n, "line"))))
	}
	return rec, err
}

func printRecovered(w io.Writer, rec enforce.Recovered) {
	group(w, "Given back", rec.Restored)
	group(w, "Withdrawn, they were culvert's own", rec.Withdrawn)
	group(w, "Forgotten, what they needed is gone", rec.Forgotten)
	group(w, "Still out", rec.Pending)
	if len(rec.Restored)+len(rec.Withdrawn)+len(rec.Forgotten)+len(rec.Pending) == 0 {
		plain.Fprintln(w, "nothing to recover")
	}
}
