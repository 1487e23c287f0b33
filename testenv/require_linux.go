package testenv

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

//go:embed packages.txt
var packages string

// Packages lists the Debian packages that hold the programs this package
// runs. packages.txt beside the source has the same list, one a line, for
// build scripts.
func Packages() []string { return strings.Fields(packages) }

// Tool is something a test needs from the machine: a program on PATH by its
// name, or one of the constants below that are not programs.
type Tool string

// What tests of this package need.
const (
	Root    Tool = "root"         // user id 0, for namespaces
	TUN     Tool = "/dev/net/tun" // TUN devices
	Culvert Tool = "CULVERT_BIN"  // the program under test, see CulvertBin

	Busybox  Tool = "busybox"
	DHClient Tool = "dhclient"
	DHCPCD   Tool = "dhcpcd"
	Dnsmasq  Tool = "dnsmasq"
	IPRoute  Tool = "ip"
	NFT      Tool = "nft"
	OpenVPN  Tool = "openvpn"
	Tcpdump  Tool = "tcpdump"
	UDHCPC   Tool = "udhcpc"
)

// Require skips the test when one of tools is missing, with a line that says
// which and how to get it, in the way of [Lacking].
func Require(t TB, tools ...Tool) {
	t.Helper()
	for _, tool := range tools {
		if err := tool.missing(); err != nil {
			Lacking(t, "needs %v", err)
		}
	}
}

// Lacking skips the test for what the machine or its kernel lacks. Where a
// skipped test is not acceptable, that is with CI=true or CULVERT_NO_SKIP=1 in
// the environment, it stops the test instead.
func Lacking(t TB, format string, args ...any) {
	t.Helper()
	stop := t.Skipf
	if os.Getenv("CI") == "true" || os.Getenv("CULVERT_NO_SKIP") == "1" {
		stop = t.Fatalf
	}
	stop(format, args...)
}

// missing says why the tool cannot be used, or nil.
func (tool Tool) missing() error {
	switch tool {
	case Root:
		if os.Geteuid() != 0 {
			return fmt.Errorf("root: running as user %d", os.Geteuid())
		}
		return nil
	case TUN:
		_, err := os.Stat(string(tool))
		return err
	case Culvert:
		_, err := CulvertBin()
		return err
	}
	if _, err := exec.LookPath(string(tool)); err != nil {
		return fmt.Errorf("the program %q: %w (Debian packages: %s)", string(tool), err, strings.Join(Packages(), " "))
	}
	return nil
}
