//go:build linux

package promise

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/rtnl"
	"github.com/culvert-project/culvert/testenv"
)

// blind keeps the daemon from watching packets, which takes more time to begin
// than all else: this is about routes.
var blind = []string{"--witness", "off"}

// run starts the program's daemon with a session and waits until it enforces.
func (l *lab) run(t *testing.T, p *testenv.Program, s enforce.Session, more ...string) *testenv.Process {
	t.Helper()
	d := p.Daemon(t, append(upArgs(s)[1:], more...)...)
	testenv.Eventually(t, patience, "enforcing", func() bool {
		resp, err := control.Ask(t.Context(), p.Socket, control.Request{Op: control.Status})
		text, _ := json.Marshal(resp)
		return err == nil && strings.Contains(string(text), `"state":"enforcing"`)
	})
	return d
}

// back compares the table with that of before, byte for byte.
func (l *lab) back(t *testing.T, what, before, during string) {
	t.Helper()
	if d := l.difference(t, before, l.table(t), sandwiched(before, during)); d != "" {
		t.Errorf("%s, the table differs:\n%s", what, d)
	}
}

// TestRestoreEveryShape: a full tunnel takes every route that iproute2 can make,
// and gives all of them back: when the daemon is stopped, and when it is killed
// and then recovered or started anew.
func TestRestoreEveryShape(t *testing.T) {
	needs(t)
	l := newLab(t)
	before := l.fill(t)
	p := testenv.NewProgram(t, l.ns, "")
	d := l.run(t, p, everything)
	during := l.table(t)
	taken := len(gone(before, during))
	t.Logf("%d routes, %d taken", len(entries(before)), taken)
	if taken < len(shapes)-20 {
		t.Errorf("only %d routes were taken:\n%s", taken, during)
	}
	for name, loose := range sandwiched(before, during) {
		if loose {
			t.Errorf("the order of %s is not compared", name)
		}
	}
	stop(t, d)
	l.back(t, "stopped", before, during)

	l.run(t, p, everything).Kill()
	l.stillOut(t, taken, before)
	p.Must(t, "recover")
	l.back(t, "killed and recovered", before, during)

	l.run(t, p, everything).Kill()
	l.stillOut(t, taken, before)
	stop(t, p.Daemon(t))
	l.back(t, "killed and started anew", before, during)

	l.run(t, p, everything).Kill()
	stop(t, l.run(t, p, everything))
	l.back(t, "killed, started anew with the session and stopped", before, during)
}

func stop(t *testing.T, d *testenv.Process) {
	t.Helper()
	if code := d.Stop(t); code != 0 {
		t.Errorf("the daemon ended with %d:\n%s", code, d.Output())
	}
}

// stillOut is the control of a kill: nothing has come back by itself.
func (l *lab) stillOut(t *testing.T, taken int, before string) {
	t.Helper()
	if n := len(gone(before, l.table(t))); n != taken {
		t.Errorf("%d routes are out after the kill, %d were taken", n, taken)
	}
}

// wreck leaves a killed daemon's journal behind: every shape is out.
func (l *lab) wreck(t *testing.T) (p *testenv.Program, before, during string) {
	t.Helper()
	before = l.fill(t)
	p = testenv.NewProgram(t, l.ns, "")
	d := l.run(t, p, everything)
	during = l.table(t)
	d.Kill()
	return p, before, during
}

func journalOf(t *testing.T, p *testenv.Program) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.StateDir, "journal-*.jsonl"))
	if err != nil || len(found) != 1 {
		t.Fatalf("journals: %v, %v", found, err)
	}
	return found[0]
}

// edit changes a journal as nothing of ours would.
func edit(t *testing.T, path string, f func(string) string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := f(string(b))
	if changed == string(b) {
		t.Fatalf("nothing to change in %s:\n%.500s", path, b)
	}
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTornJournal: the last line was cut off by the crash, or there is half of
// one more. What the whole lines hold comes back.
func TestTornJournal(t *testing.T) {
	needs(t)
	l := newLab(t)
	for _, torn := range []string{`{"hold":[{"id":999,"rou`, "{", "\x00\x00\x00", `{"forget":[1,2,3]`} {
		p, before, during := l.wreck(t)
		edit(t, journalOf(t, p), func(s string) string { return s + torn })
		p.Must(t, "recover")
		l.back(t, "torn by "+torn, before, during)
	}
}

// TestForeignJournal: what another boot or a namespace that is no more had
// written down means nothing here.
func TestForeignJournal(t *testing.T) {
	needs(t)
	l := newLab(t)
	for name, alter := range map[string]func(*enforce.Binding){
		"another boot":      func(b *enforce.Binding) { b.Boot += "7" },
		"another namespace": func(b *enforce.Binding) { b.Namespace += "7" },
	} {
		p, before, during := l.wreck(t)
		l.bindAnew(t, p, alter)
		d := p.Daemon(t)
		stop(t, d)
		if !strings.Contains(d.Output(), "discarded") {
			t.Errorf("%s: the daemon does not say so:\n%s", name, d.Output())
		}
		after := l.table(t)
		if extra := gone(after, during); len(extra) > 0 {
			t.Errorf("%s: given back:\n%s", name, strings.Join(extra, ""))
		}
		// With another's journal nobody knows whose the routes with our number are.
		if len(gone(before, after)) == 0 || len(gone(during, after)) > 0 {
			t.Errorf("%s: nothing is out, or something else went:\n%s", name, after)
		}
		if out := p.Must(t, "recover"); !strings.Contains(out, "nothing to recover") {
			t.Errorf("%s, recovered after that: %s", name, out)
		}
	}
}

// bindAnew writes a program's journal again as another boot or namespace would
// have written it.
func (l *lab) bindAnew(t *testing.T, p *testenv.Program, alter func(*enforce.Binding)) {
	t.Helper()
	entries, err := l.journal(t, p.StateDir).Load()
	if err != nil || len(entries) == 0 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	var b enforce.Binding
	l.ns.Run(t, func() { b, err = rtnl.Binding() })
	if err != nil {
		t.Fatal(err)
	}
	alter(&b)
	other, err := enforce.OpenJournal(t.TempDir(), b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.Hold(entries), other.Close()); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(other.Path())
	if err != nil {
		t.Fatal(err)
	}
	edit(t, journalOf(t, p), func(string) string { return string(written) })
}

// TestDeviceIsAnother: between crash and recovery eth2 was deleted and made
// again, with another index or the same one. Its routes are forgotten; they
// are not another interface's.
func TestDeviceIsAnother(t *testing.T) {
	needs(t)
	for _, name := range []string{"new index", "same index"} {
		l := newLab(t)
		p, before, _ := l.wreck(t)
		index := l.index(t, "eth2")
		l.ns.LinkDel(t, "eth2")
		if name == "same index" {
			l.ns.IP(t, "link add eth2 index", itoa(index), "type veth peer name peer2")
			l.ns.IP(t, "link set eth2 up")
			l.ns.IP(t, "link set peer2 up")
		} else {
			testenv.Veth(t, testenv.End{NS: l.ns, Name: "eth2"}, testenv.End{NS: l.far, Name: "eth2"})
		}
		out := p.Must(t, "recover")
		after := l.table(t)
		for _, e := range gone(before, after) {
			// Nexthop objects of eth2 went with it, and took routes and legs along.
			if !strings.Contains(e, "eth2") && !strings.Contains(e, "nhid") {
				t.Errorf("%s: lost: %s", name, e)
			}
		}
		onEth2 := func(e string) bool { return strings.Contains(e, "dev eth2") && !strings.Contains(e, "proto kernel") }
		if i := slices.IndexFunc(entries(after), onEth2); i >= 0 {
			t.Errorf("%s: given to another interface: %s", name, entries(after)[i])
		}
		if len(gone(before, after)) == 0 {
			t.Errorf("%s: nothing was forgotten: %s", name, out)
		}
	}
}

// renames says whether this kernel renames an interface that is up.
func renames(t *testing.T) bool {
	t.Helper()
	ns := testenv.Namespace(t, "probe")
	ns.IP(t, "link add name probe up type veth peer name other")
	return ns.Command("ip", "link", "set", "dev", "probe", "name", "probed").Run() == nil
}

// TestRenamedWhileConnected: a renamed interface is still itself.
func TestRenamedWhileConnected(t *testing.T) {
	needs(t)
	if !renames(t) {
		testenv.Lacking(t, "this kernel renames no interface that is up (Linux 6.2)")
	}
	l := newLab(t)
	l.fill(t)
	before := l.ns.MainTable(t) // a shell remembers names
	p := testenv.NewProgram(t, l.ns, "")
	d := l.run(t, p, everything)
	l.ns.IP(t, "link set dev eth2 name lan9")
	stop(t, d)
	want := strings.ReplaceAll(before, "eth2", "lan9")
	if d := l.difference(t, want, l.ns.MainTable(t), nil); d != "" {
		t.Errorf("the table differs:\n%s", d)
	}
}
