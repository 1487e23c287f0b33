package main

import (
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
)

func newRoot(p *platform) *cobra.Command {
	root := &cobra.Command{
		Use:   "culvert",
		Short: "Keep a VPN's traffic inside its tunnel",
		Long: p.help(`Culvert keeps a VPN's traffic inside its tunnel. It watches the main routing
table, removes every route that would lead the VPN's prefixes elsewhere, puts
back the VPN's own routes when they vanish, and gives back what it removed when
the session ends.{{if .Witness}} Packets that leave outside the tunnel all the same are counted,
their senders named, and dropped where that is asked for.{{end}}

One daemon ("culvert run") serves one {{.Place}}. Sessions are opened by
the VPN's hooks ("culvert hook openvpn"), by hand ("culvert up"), or with the
daemon itself.

` + exitHelp),
		Example: p.help(`{{.Line "plan --tunnel" "--protect 10.0.0.0/8"}}# what would change
  culvert run                                        # the daemon
{{.Line "up --tunnel" "--protect 10.0.0.0/8"}}# open a session
  culvert status                                     # is it enforced?
{{if .Witness}}  culvert leaks                                      # who leaked, and why
{{end}}{{.Line "down --tunnel" ""}}# end it, restore the routes`),
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Version:           version(),
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetVersionTemplate("culvert {{.Version}}\n") // as "culvert version"
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; see \"%s --help\"", err, cmd.CommandPath())
	})
	root.InitDefaultVersionFlag()
	root.Flags().Lookup("version").Usage = "print the version"
	root.AddCommand(newRun(p), newReload(p), newUp(p), newDown(p), newStatus(p), p.ofWitness(newLeaks(p)), newWatch(p), newPlan(p), newExplain(p),
		newRecover(p), p.ofWitness(newRelease(p)), newHook(p), newVersion())
	return root
}

// noArgs refuses arguments: those of the root command are unknown commands.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasParent():
		return usagef("%s takes no argument, but was given %q; see \"%s --help\"", cmd.CommandPath(), args[0], cmd.CommandPath())
	}
	return unknownCommand(cmd, args[0])
}

// sessionFlags are the flags that describe one session.
type sessionFlags struct{ text session.Text }

func (f *sessionFlags) register(p *platform, flags *pflag.FlagSet) {
	flags.StringVar(&f.text.Tunnel, "tunnel", "", "the tunnel's `interface`")
	flags.StringSliceVar(&f.text.Protect, "protect", nil, "`prefixes` that must leave through the tunnel, with commas between or the flag again")
	flags.StringSliceVar(&f.text.Exclude, "exclude", nil, "`prefixes` that bypass the tunnel on purpose")
	flags.StringSliceVar(&f.text.Servers, "server", nil, "where the tunnel's own packets go, `ADDRESS:PORT/PROTO`, or ADDRESS/PROTO without ports: esp, ah, gre, ipip, sit, l2tp, any; a full tunnel needs it, unless it is WireGuard's")
	flags.StringSliceVar(&f.text.ServerFrom, "server-from", nil, "`senders` of the tunnel's own packets: auto, host, uid:USER, mark:NUMBER or any; what others send to the server is a leak (default auto)")
	flags.StringSliceVar(&f.text.ExcludeInterfaces, "exclude-interface", nil, "`interfaces` whose routes are reported, not removed; names or patterns (br-*), there or not yet")
	flags.StringSliceVar(&f.text.OtherTable, "other-table", nil, "protected `prefixes` that the VPN routes in a table of its own, like wg-quick's full tunnel")
	flags.StringVar(&f.text.OtherFamily, "other-family", "", "`allow|block` the family that the tunnel leaves out, when all of the other must enter it (default allow)")
	f.text.Where = func(field session.Field) string { return "--" + string(field) }
	p.dropFlags(flags)
}

// given reports whether any of the flags was.
func (f *sessionFlags) given(flags *pflag.FlagSet) bool {
	for _, name := range []session.Field{session.Tunnel, session.Protect, session.Exclude, session.ServerField, session.ServerFrom, session.ExcludeInterface, session.OtherTable, session.OtherFamily} {
		if flags.Changed(string(name)) {
			return true
		}
	}
	return false
}

func socketFlag(p *platform, flags *pflag.FlagSet, socket *string) {
	flags.StringVar(socket, "socket", p.Socket, "`path` of the daemon's control socket")
}

// printer keeps the first error of many writes.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) Write(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.w.Write(b)
	p.err = err
	return n, err
}

// setChanged hands the flags that were given to Set, by their names in a file.
func setChanged(flags *pflag.FlagSet, s *config.Settings, names ...string) error {
	var errs []error
	for _, name := range names {
		if f := flags.Lookup(name); f.Changed {
			errs = append(errs, s.Set("--"+name, strings.ReplaceAll(name, "-", "_"), f.Value.String()))
		}
	}
	return errors.Join(errs...)
}
