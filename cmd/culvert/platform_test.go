package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/enforce"
)

var platforms = map[string]*platform{"linux": &onLinux, "darwin": &onDarwin, "windows": &onWindows}

// TestLacking: what a platform lacks is in no help, and refused in one sentence.
func TestLacking(t *testing.T) {
	lacking := slices.Concat(flagsOfRules[:], flagsOfWitness[:])
	for _, p := range []*platform{&onDarwin, &onWindows} {
		seen := 0
		for _, cmd := range newRoot(p).Commands() {
			for _, name := range lacking {
				if strings.Contains(cmd.Flags().FlagUsages()+cmd.Long+cmd.Example, "--"+name+" ") {
					t.Errorf("%s: --%s is in the help", cmd.Name(), name)
				}
				if cmd.Flags().Lookup(name) == nil {
					continue
				}
				seen++
				if err := cmd.Flags().Set(name, "1"); err == nil || !strings.Contains(err.Error(), "this system has ") {
					t.Errorf("%s: --%s: %v", cmd.Name(), name, err)
				}
			}
			if words := cmd.Long + cmd.Short + cmd.Example; strings.Contains(words, "namespace") || strings.Contains(words, "eBPF") {
				t.Errorf("%s speaks of what only Linux has:\n%s", cmd.Name(), words)
			}
		}
		if seen < len(lacking)+2 {
			t.Errorf("only %d flags were looked at", seen)
		}
	}
}

func TestLackingCommands(t *testing.T) {
	for _, name := range []string{"leaks", "release"} {
		root := newRoot(&onDarwin)
		root.SetArgs([]string{name, "--json"})
		err := root.Execute()
		if want := "culvert " + name + ": this system has no witness of packets"; err == nil || !strings.HasPrefix(err.Error(), want) || exitCode(err) != exitUsage {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(root.UsageString(), name) {
			t.Errorf("%s is in the help", name)
		}
	}
}

// TestLackingSettings: what a file asks for is refused alike; what it does not
// ask for may stand in it.
func TestLackingSettings(t *testing.T) {
	plain := config.Default()
	plain.Witness = config.WitnessOff
	other, drop, guard, need := config.Default(), config.Default(), config.Default(), config.Default()
	other.Sessions = []enforce.Session{{Tunnel: "wg0", OtherTable: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}}
	drop.OnLeak, guard.OnLoss, need.Witness = config.LeakDrop, enforce.LossGuard, config.WitnessRequire
	for _, s := range []config.Settings{other, drop, guard, need} {
		if err := onWindows.check(&s); exitCode(err) != exitUsage {
			t.Errorf("%+v: %v", s, err)
		}
		if err := onLinux.check(&s); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if err := onWindows.check(&plain); err != nil {
		t.Error(err)
	}
}

func TestRefuseNothing(t *testing.T) {
	cmd := newExplain(&onDarwin)
	refuse(cmd.Flags(), []string{"no-such-flag"}, errNoRules)
	if err := cmd.Flags().Set("tunnel", "tun0"); err != nil {
		t.Errorf("another flag: %v", err)
	}
}
