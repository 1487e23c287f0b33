package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
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
		w := &printer{w: cmd.OutOrStdout()}
		if err == nil || len(rec.Restored)+len(rec.Withdrawn)+len(rec.Forgotten)+len(rec.Pending) > 0 {
			printRecovered(w, rec)
		}
		if err != nil {
			return err
		}
		if w.err == nil && len(rec.Pending) > 0 {
			return errPending(rec)
		}
		return w.err
	}
	return cmd
}

func errPending(rec enforce.Recovered) error {
	return withCode(exitWrong, fmt.Errorf("%d routes could not be given back now; they stay in the journal, run \"culvert recover\" again when their interfaces are up", len(rec.Pending)))
}

func recoverState(cmd *cobra.Command, s config.Settings) (rec enforce.Recovered, err error) {
	if err := permitted(); err != nil {
		return rec, err
	}
	lock, err := acquireLock(holder{PID: os.Getpid(), What: "recover"})
	if err != nil {
		return rec, err
	}
	defer lock.Close() //nolint:errcheck // the kernel frees it with the process
	if _, err := os.Stat(s.StateDir); errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	st, err := openState(s.StateDir)
	if err != nil {
		return rec, err
	}
	log, _ := newLog(cmd, &s)
	defer st.close(log)
	for _, note := range st.journal.Notes() {
		log.Warn(note)
	}
	rec, err = enforce.Recover(cmd.Context(), st.sys, st.journal, engineOptions(s, log))
	if n := st.journal.Damaged(); n > 0 {
		err = errors.Join(err, withCode(exitWrong, fmt.Errorf("%d lines of the journal were damaged: what they named was not given back; the routes that could be read were", n)))
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
