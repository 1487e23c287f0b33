package main

import (
	"errors"
	"fmt"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/enforce"
)

// platform is what a system has, as far as the command line is concerned. All
// are here, so that the help of each can be read and tested on any.
type platform struct {
	config.Places
	Place   string // what one daemon serves
	Rules   bool   // rules that choose a routing table, and further tables
	Witness bool   // of packets
	Tunnel  string // what a tunnel's interface is called, for example
	Other   string // the same, of another interface
	call    string // how OpenVPN's configuration names this program, up to its arguments
	callEnd string
}

var onLinux = platform{
	Places: config.Linux, Place: "network namespace", Rules: true, Witness: true, Tunnel: "tun0", Other: "docker0",
	call: `"/usr/bin/culvert `, callEnd: `"`,
}

var onDarwin = platform{
	Places: config.Darwin, Place: "machine", Tunnel: "utun4", Other: "bridge100",
	call: `"/usr/local/bin/culvert `, callEnd: `"`,
}

// OpenVPN takes the single quotes off, and reads what is in them once more.
var onWindows = platform{
	Places: config.Windows, Place: "machine", Tunnel: "OpenVPN", Other: "vEthernet",
	call: `'"C:\\Program Files\\culvert\\culvert.exe" `, callEnd: `'`,
}

// Call is a value for OpenVPN's configuration that runs this program.
func (p *platform) Call(args string) string { return p.call + args + p.callEnd }

// Line is an example on the platform's tunnel, padded for a remark behind it.
func (p *platform) Line(before, after string) string {
	return fmt.Sprintf("  %-51s", "culvert "+before+" "+p.Tunnel+" "+after)
}

// help fills in what the platform has.
func (p *platform) help(text string) string {
	var b strings.Builder
	t := template.Must(template.New("help").Parse(text))
	if err := t.Execute(&b, p); err != nil {
		panic(err) // the texts are constants, and tested
	}
	return b.String()
}

// flagsOfRules ask for routing rules or for further tables.
var flagsOfRules = [...]string{"other-table", "tos", "mark", "uid", "device", "from"}

// flagsOfWitness ask for the witness of packets.
var flagsOfWitness = [...]string{"on-loss", "on-leak", "guard-for", "witness", "other-family", "server-from"}

// What a system may lack.
var (
	errNoRules   = errors.New("this system has one routing table and no rules that choose another; leave it out")
	errNoWitness = errors.New("this system has no witness of packets, so none can be counted or dropped; leave it out")
)

// dropFlags takes flags that the platform has nothing for out of the help, and
// refuses them with one sentence where they are given all the same.
func (p *platform) dropFlags(flags *pflag.FlagSet) {
	if !p.Rules {
		refuse(flags, flagsOfRules[:], errNoRules)
	}
	if !p.Witness {
		refuse(flags, flagsOfWitness[:], errNoWitness)
	}
}

// refuse hides flags. One that is not there is no error.
func refuse(flags *pflag.FlagSet, names []string, why error) {
	for _, name := range names {
		if f := flags.Lookup(name); f != nil {
			f.Hidden, f.Value = true, refusal{f.Value, why}
		}
	}
}

// refusal is a flag that cannot be set.
type refusal struct {
	pflag.Value
	why error
}

// Set refuses every value.
func (r refusal) Set(string) error { return r.why }

// check refuses what a file asks for and the platform lacks.
func (p *platform) check(s *config.Settings) error {
	for _, sess := range s.Sessions {
		if !p.Rules && len(sess.OtherTable) > 0 {
			return usagef("other_table of %s: %w", sess.Tunnel, errNoRules)
		}
	}
	for _, sess := range s.Sessions {
		if !p.Witness && sess.OtherFamily == enforce.OtherBlock {
			return usagef("other_family of %s: %w", sess.Tunnel, errNoWitness)
		}
		if !p.Witness && len(sess.ServerFrom) > 0 {
			return usagef("server_from of %s: %w", sess.Tunnel, errNoWitness)
		}
	}
	if !p.Witness && (s.Drops() || s.Witness == config.WitnessRequire) {
		return usagef("on_leak, on_loss or witness: %w", errNoWitness)
	}
	return nil
}

// ofWitness is a command that needs the witness: itself, or its refusal.
func (p *platform) ofWitness(cmd *cobra.Command) *cobra.Command {
	if p.Witness {
		return cmd
	}
	return &cobra.Command{
		Use: cmd.Name(), Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("%s: this system has no witness of packets, so there is nothing to tell", cmd.CommandPath())
		},
	}
}
