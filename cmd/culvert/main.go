// Culvert keeps a VPN's traffic inside its tunnel: it watches the main routing
// table, removes what would lead protected traffic elsewhere, and gives back
// what it took.
package main

import (
	"io"
	"os"
	"runtime"

	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "hook" {
		// A VPN's service may be allowed very few threads.
		runtime.GOMAXPROCS(1)
	}
	os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr))
}

// throughWall makes plain what is printed, by whatever means.
func throughWall(w io.Writer) io.Writer { return plain.Writer{To: w} }

// execute runs one command line and returns its exit code.
func execute(args []string, stdout, stderr io.Writer) int {
	stdout, stderr = throughWall(stdout), throughWall(stderr)
	root := newRoot(here)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := checkCommand(root, args)
	if err == nil {
		err = root.Execute()
	}
	complain(stderr, err)
	return exitCode(err)
}
