package main

import (
	"cmp"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    "Print the version of this program, the commit it was built from, and the Go it was built with.",
		Example: "  culvert version",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := plain.Fprintln(cmd.OutOrStdout(), "culvert", version())
			return err
		},
	}
}

// tag is set by the Makefile (-X main.tag); without it the module's
// version counts.
var tag string

// version is what the build says of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return cmp.Or(tag, "(unknown)")
	}
	v := cmp.Or(tag, info.Main.Version, "(devel)")
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			v += " " + s.Value[:12]
		}
	}
	return v + " " + info.GoVersion
}
