package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// checkCommand refuses a command line whose command does not exist. Cobra itself
// looks at arguments only after --help, and would print another command's help.
func checkCommand(root *cobra.Command, args []string) error {
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		return nil // what a shell asks in order to complete may be half a word
	}
	cmd := root
	for _, arg := range args {
		switch {
		case arg == "--" || !cmd.HasAvailableSubCommands():
			return nil
		case strings.HasPrefix(arg, "-"):
			continue // commands that have commands have no flags with a value
		case cmd == root && arg == "help":
			continue // of what follows
		case cmd == root && arg == "completion":
			return nil
		}
		next := subcommand(cmd, arg)
		if next == nil {
			return unknownCommand(cmd, arg)
		}
		cmd = next
	}
	return nil
}

func subcommand(cmd *cobra.Command, name string) *cobra.Command {
	for _, c := range cmd.Commands() {
		if c.Name() == name || c.HasAlias(name) {
			return c
		}
	}
	return nil
}

// unknownCommand names the nearest commands that there are.
func unknownCommand(cmd *cobra.Command, name string) error {
	hint := ""
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = fmt.Sprintf(", do you mean %q", cmd.CommandPath()+" "+near[0])
		for _, other := range near[1:] {
			hint += fmt.Sprintf(" or %q", cmd.CommandPath()+" "+other)
		}
		hint += "?"
	}
	if hint == "" {
		hint = ";"
	}
	return usagef("unknown command %.40q%s see \"%s --help\"", name, hint, cmd.CommandPath())
}
