//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// TestScripts runs the sequences of testdata. Each script has a stub
// (testenv.Stub) of its own. $BIN is the program, $SOCKET and $STATE are what
// its commands are given, $NETNS is the client's namespace, $WG a name for a
// WireGuard interface. The commands,
// beside those of testscript:
//
//	ip ARGS…                 iproute2 in the client; $VPN routes are there already
//	lan ARGS…                iproute2 in the LAN
//	tunnel NAME [CIDR…]      make a tunnel device, up
//	tunnel -down NAME        end it, as if its program had died
//	daemon ARGS…             start "culvert run" and wait until it answers
//	term                     end it in order; its exit code must be 0
//	kill9                    end it with SIGKILL
//	hangup                   send it SIGHUP
//	culvert [=CODE] ARGS…    run the program; the exit code must be CODE (0)
//	nobody [=CODE] ARGS…     the same as an unprivileged user
//	table save|same NAME     keep the main table; compare it with a kept one
//	table has|lacks REGEXP   look for lines of it
//	leaves ADDR DEV          by which interface, or refused with which error
//	packets ADDR tunnel|lan  send a burst; all of it must arrive there
//	status TUNNEL.FIELD OP VALUE
//	                         the field of "status --json" becomes = != >= VALUE, or
//	                         comes to match ~ REGEXP; lists count their elements
//	log REGEXP               the daemon's log comes to match
//
// What takes its time is waited for.
func TestScripts(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.TUN, testenv.IPRoute, testenv.Culvert, "setpriv", "wireguard-go", "wg")
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ip": with((*script).ip), "lan": with((*script).lan), "tunnel": with((*script).tunnel),
			"daemon": with((*script).daemon), "term": with((*script).term), "kill9": with((*script).kill9), "hangup": with((*script).hangup),
			"culvert": with((*script).culvert), "nobody": with((*script).nobody),
			"table": with((*script).table), "leaves": with((*script).leaves), "packets": with((*script).packets),
			"status": with((*script).status), "log": with((*script).log),
		},
	})
}

// script is what the commands of one script act on.
type script struct {
	*stub
	t      testing.TB
	run    *testenv.Process // the daemon
	tables map[string]string
	tuns   map[string]*testenv.Tun
}

type scriptKey struct{}

func setup(env *testscript.Env) error {
	t := env.T().(testing.TB)
	s := &script{stub: newStub(t), t: t, tables: map[string]string{}}
	s.tuns = map[string]*testenv.Tun{"tun0": s.Tun}
	env.Values[scriptKey{}] = s
	env.Setenv("BIN", s.prog.Bin)
	env.Setenv("SOCKET", s.prog.Socket)
	env.Setenv("STATE", s.prog.StateDir)
	env.Setenv("NETNS", s.Client.Name())
	env.Setenv("WG", fmt.Sprintf("wg%d", os.Getpid())) // its socket's name is the machine's
	return nil
}

// with makes a command of a method. An error ends the script.
func with(f func(*script, *testscript.TestScript, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("the command cannot be negated")
		}
		ts.Check(f(ts.Value(scriptKey{}).(*script), ts, args))
	}
}

// show passes a command's output on to stdout and stderr of the script.
func show(ts *testscript.TestScript, r testenv.Result) {
	fmt.Fprint(ts.Stdout(), r.Stdout) //nolint:errcheck // a buffer
	fmt.Fprint(ts.Stderr(), r.Stderr) //nolint:errcheck // a buffer
}

func (s *script) ip(ts *testscript.TestScript, args []string) error {
	return ipIn(ts, s.Client, args)
}

func (s *script) lan(ts *testscript.TestScript, args []string) error {
	return ipIn(ts, s.LAN, args)
}

func ipIn(ts *testscript.TestScript, n *testenv.NS, args []string) error {
	out, err := n.Command("ip", args...).CombinedOutput()
	show(ts, testenv.Result{Stdout: string(out)})
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (s *script) tunnel(_ *testscript.TestScript, args []string) error {
	if args[0] == "-down" {
		return s.tuns[args[1]].Close()
	}
	tun, err := testenv.NewTun(s.Client, args[0], testenv.Prefixes(args[1:]...)...)
	if err != nil {
		return err
	}
	s.t.Cleanup(func() { _ = tun.Close() })
	s.tuns[args[0]] = tun
	if args[0] == "tun0" {
		s.Tun = tun
	}
	return nil
}

func (s *script) daemon(_ *testscript.TestScript, args []string) error {
	s.run = s.prog.Daemon(s.t, args...)
	return nil
}

func (s *script) term(*testscript.TestScript, []string) error {
	if code := s.run.Stop(s.t); code != 0 {
		return fmt.Errorf("culvert run ended with %d:\n%s", code, s.run.Output())
	}
	return nil
}

func (s *script) kill9(*testscript.TestScript, []string) error {
	s.run.Kill()
	return nil
}

func (s *script) hangup(*testscript.TestScript, []string) error {
	return s.run.Signal(unix.SIGHUP)
}

// codeOf takes the wanted exit code off a command line.
func codeOf(args []string) (int, []string, error) {
	if len(args) == 0 || !strings.HasPrefix(args[0], "=") {
		return 0, args, nil
	}
	code, err := strconv.Atoi(args[0][1:])
	return code, args[1:], err
}

func (s *script) culvert(ts *testscript.TestScript, args []string) error {
	code, args, err := codeOf(args)
	if err != nil {
		return err
	}
	r, err := s.prog.Run(args...)
	if err != nil {
		return err
	}
	show(ts, r)
	if r.Code != code {
		return fmt.Errorf("want exit code %d: %s", code, r)
	}
	return nil
}

func (s *script) nobody(ts *testscript.TestScript, args []string) error {
	code, args, err := codeOf(args)
	if err != nil {
		return err
	}
	args = append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", s.prog.Bin}, args...)
	cmd := s.Client.Command("setpriv", args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the exit code tells
	r := testenv.Result{Code: cmd.ProcessState.ExitCode(), Stdout: out.String(), Stderr: errs.String()}
	show(ts, r)
	if r.Code != code {
		return fmt.Errorf("want exit code %d: %s", code, r)
	}
	return nil
}

func (s *script) table(_ *testscript.TestScript, args []string) error {
	verb, what := args[0], strings.Join(args[1:], " ")
	now := func() string { return s.Client.MainTable(s.t) }
	switch verb {
	case "save":
		s.tables[what] = now()
		return nil
	case "same":
		if eventually(func() bool { return now() == s.tables[what] }) {
			return nil
		}
		return fmt.Errorf("the table is\n%s\nwant\n%s", now(), s.tables[what])
	}
	re, err := regexp.Compile("(?m)" + what)
	if err != nil {
		return err
	}
	if !eventually(func() bool { return re.MatchString(now()) == (verb == "has") }) {
		return fmt.Errorf("the table %s %q not:\n%s", verb, what, now())
	}
	return nil
}

func (s *script) leaves(_ *testscript.TestScript, args []string) error {
	want := strings.Join(args[1:], " ")
	if !eventually(func() bool { return way(s.Client, args[0]) == want }) {
		return fmt.Errorf("%s leaves by %s, want %s\n%s", args[0], way(s.Client, args[0]), want, s.Client.MainTable(s.t))
	}
	return nil
}

func (s *script) packets(_ *testscript.TestScript, args []string) error {
	blast, filter := marked(parseProbe(args[0]).dst)
	in, out := s.Tun.Count(filter), s.Leaks(s.t, filter)
	s.Client.Send(s.t, blast)
	eventually(func() bool { return in.Packets()+out.Packets() >= burst })
	got := map[string]int{"tunnel": counted(s.t, in), "lan": counted(s.t, out)}
	if got["tunnel"]+got["lan"] != burst || got[args[1]] != burst {
		return fmt.Errorf("of %d packets: %v, want all by the %s", burst, got, args[1])
	}
	return nil
}

func (s *script) log(_ *testscript.TestScript, args []string) error {
	re, err := regexp.Compile(strings.Join(args, " "))
	if err != nil {
		return err
	}
	if !eventually(func() bool { return re.MatchString(s.run.Output()) }) {
		return fmt.Errorf("the daemon's log does not match %q:\n%s", re, s.run.Output())
	}
	return nil
}

func (s *script) status(_ *testscript.TestScript, args []string) error {
	tunnel, field, _ := strings.Cut(args[0], ".")
	var got string
	ok := eventually(func() bool {
		var err error
		got, err = s.field(tunnel, field)
		return err == nil && compare(got, args[1], strings.Join(args[2:], " "))
	})
	if !ok {
		return fmt.Errorf("%s is %s, want %s\n%s", args[0], got, strings.Join(args[1:], " "), s.prog.Exec(s.t, "status", "--json"))
	}
	return nil
}

// field is a session's field as text, the length of a list, or "none" when
// there is no such session.
func (s *script) field(tunnel, field string) (string, error) {
	r, err := s.prog.Run("status", "--json")
	if err != nil {
		return "", err
	}
	var doc struct{ Sessions []map[string]any }
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil {
		return "", fmt.Errorf("%w: %s", err, r)
	}
	for _, sess := range doc.Sessions {
		if sess["tunnel"] != tunnel {
			continue
		}
		if list, ok := sess[field].([]any); ok {
			return strconv.Itoa(len(list)), nil
		}
		return fmt.Sprint(sess[field]), nil
	}
	return "none", nil
}

func compare(got, op, want string) bool {
	a, _ := strconv.Atoi(got)
	b, _ := strconv.Atoi(want)
	switch op {
	case "=":
		return got == want
	case "!=":
		return got != want
	case ">=":
		return a >= b
	case "~":
		is, err := regexp.MatchString(want, got)
		return is && err == nil
	}
	return false
}

// TestScriptsAreRun guards against a folder that was lost.
func TestScriptsAreRun(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) < 10 {
		t.Errorf("%d scripts, %v", len(names), err)
	}
}
