package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
)

const watchLong = `Print incidents{{if .Witness}} and leaks{{end}} as they happen, until SIGINT or SIGTERM (exit code 0) or
the end of the daemon (3).{{if .Witness}} An incident is printed once its packets are counted; a
leak at most ten times a second, with what came since the last line.{{end}}

--json prints one document a line:

  time, kind            RFC 3339; incident{{if .Witness}}, leak{{end}} or lost
  incident              as in "culvert status --json"
{{if .Witness}}  leak                  as in by[] there; packets, bytes and dropped are what came
                        since the last line for the same
{{end}}  lost                  lines dropped because this reader was slow

` + exitHelp

func newWatch(p *platform) *cobra.Command {
	var socket string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "watch",
		Short:   p.help("Print incidents{{if .Witness}} and leaks{{end}} as they happen"),
		Long:    p.help(watchLong),
		Example: p.help("  culvert watch\n  culvert watch --json | jq -c 'select(.kind == \"{{if .Witness}}leak{{else}}incident{{end}}\") | .{{if .Witness}}leak{{else}}incident{{end}}'"),
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document a line")
	socketFlag(p, cmd.Flags(), &socket)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(context.WithoutCancel(cmd.Context()), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		show := showEvent
		if asJSON {
			show = showEventJSON
		}
		return control.Follow(ctx, socket, func(ev report.Event) error { return show(cmd.OutOrStdout(), ev) })
	}
	return cmd
}

func showEventJSON(w io.Writer, ev report.Event) error {
	b, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

func showEvent(w io.Writer, ev report.Event) error {
	var line string
	switch {
	case ev.Incident != nil:
		line = incidentLine(*ev.Incident)
	case ev.Leak != nil:
		line = leakLine(ev.Time, ev.Leak)
	case ev.Lost > 0:
		line = fmt.Sprintf("%s  %d lines lost: too slow a reader", ev.Time.Format(time.TimeOnly), ev.Lost)
	default:
		return nil
	}
	_, err := plain.Fprintln(w, line)
	return err
}
