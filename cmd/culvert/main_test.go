package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"culvert": main})
}

// golden compares text with a file of testdata/golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", path, got, want)
	}
}

// TestHelp holds every help text, for each platform: it is part of the interface.
func TestHelp(t *testing.T) {
	for system, p := range platforms {
		for _, command := range commandsOf(newRoot(p), "") {
			t.Run(system+": culvert "+command, func(t *testing.T) { holdHelp(t, system, p, command) })
		}
	}
}

// commandsOf is a command and all in it that are in the help.
func commandsOf(cmd *cobra.Command, name string) []string {
	names := []string{name}
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, commandsOf(c, strings.TrimSpace(name+" "+c.Name()))...)
		}
	}
	return names
}

func holdHelp(t *testing.T, system string, p *platform, command string) {
	var stdout bytes.Buffer
	root := newRoot(p)
	root.SetArgs(append(strings.Fields(command), "--help"))
	root.SetOut(&stdout)
	if err := root.Execute(); err != nil {
		t.Error(err)
	}
	text := stdout.String()
	if strings.Contains(text, "{{") || strings.Contains(text, "\n\n\n") {
		t.Errorf("a template shows:\n%s", text)
	}
	golden(t, filepath.Join("help-"+system, strings.ReplaceAll("culvert "+command, " ", "-")+".txt"), text)
}

// TestEveryCommandIsExplained: each has an example, and says its exit codes.
func TestEveryCommandIsExplained(t *testing.T) {
	for _, p := range platforms {
		for _, c := range newRoot(p).Commands() {
			switch {
			case c.Hidden:
			case c.Example == "" || c.Long == "":
				t.Errorf("%s has no example or no description", c.Name())
			case !c.HasSubCommands() && c.Name() != "version" && !strings.Contains(c.Long, exitHelp):
				t.Errorf("%s does not say its exit codes", c.Name())
			}
		}
	}
}
