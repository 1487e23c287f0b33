//go:build linux && vm

package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-project/culvert/testenv"
)

// patience is how long something may take on an emulated processor.
const patience = 3 * time.Minute

const (
	configFile = "/etc/culvert/culvert.yaml"
	program    = "/usr/bin/culvert"
)

// rig is a lab whose client is this machine.
type rig struct {
	*testenv.Lab
	t *testing.T
}

func newRig(t *testing.T, opts testenv.LabOptions) *rig {
	t.Helper()
	host, err := testenv.CurrentNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	opts.Client = host
	r := &rig{t: t, Lab: testenv.NewLab(t, opts)}
	t.Cleanup(r.tell)
	return r
}

// tell shows what the machine knows when the case has failed.
func (r *rig) tell() {
	if !r.t.Failed() {
		return
	}
	out, _ := try(`culvert status; culvert leaks | head -20; ip -4 route; ip rule; ip -br addr; systemctl --no-pager --failed
		journalctl --no-pager -q -n 80 -o short-monotonic | grep -v vm-cases`)
	r.t.Logf("the machine at the end:\n%s", out)
}

// try runs a shell script and returns all that it said.
func try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v", 2*patience)
	}
	return string(out), err
}

// sh is try for what must succeed.
func (r *rig) sh(format string, args ...any) string {
	r.t.Helper()
	script := fmt.Sprintf(format, args...)
	out, err := try(script)
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// eventually waits until a script succeeds.
func (r *rig) eventually(what, script string) {
	r.t.Helper()
	var out string
	ok := testenv.Until(patience, func() (ok bool) {
		var err error
		out, err = try(script)
		return err == nil
	})
	if !ok {
		r.t.Fatalf("%s: not within %v\n%s\n%s", what, patience, script, out)
	}
}

// write makes a file, with its folder.
func (r *rig) write(path, text string, mode os.FileMode) {
	r.t.Helper()
	r.sh("mkdir -p $(dirname %s)", path)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		r.t.Fatal(err)
	}
}

// unit starts culvert's own unit with a configuration. Type=notify: it is ready
// when this returns.
func (r *rig) unit(config string) {
	r.t.Helper()
	r.write(configFile, config, 0o644)
	r.sh("systemctl start culvert")
}

// siteSession is a session for the lab's site.
func siteSession(tunnel string) string {
	return "sessions:\n  - tunnel: " + tunnel + "\n    protect: [" + testenv.SiteNet.String() + "]\n"
}

// status is what the cases read of "culvert status --json".
type status struct {
	Sessions []struct {
		Tunnel  string `json:"tunnel"`
		State   string `json:"state"`
		Error   string `json:"error"`
		Removed int    `json:"removed"`
	} `json:"sessions"`
	Leaks struct {
		Packets int `json:"packets"`
		Dropped int `json:"dropped"`
	} `json:"leaks"`
	Witness struct {
		Mode    string   `json:"mode"`
		Error   string   `json:"error"`
		Guard   string   `json:"guard"`
		Adopted bool     `json:"adopted"`
		Holding []string `json:"holding"`
	} `json:"witness"`
}

// status asks the daemon; its exit code says how it is and is no failure here.
func (r *rig) status() (st status) {
	r.t.Helper()
	out, err := exec.Command(program, "status", "--json").Output()
	if jsonErr := json.Unmarshal(out, &st); jsonErr != nil {
		r.t.Fatalf("culvert status --json: %v, %v: %s", err, jsonErr, out)
	}
	return st
}

// enforcing waits until every session is, and says so by its exit code.
func (r *rig) enforcing() {
	r.t.Helper()
	r.sh("culvert status --wait %s", patience)
}

// sessions waits until so many are open.
func (r *rig) sessions(n int) {
	r.t.Helper()
	if !testenv.Until(patience, func() bool { return len(r.status().Sessions) == n }) {
		r.t.Fatalf("want %d sessions: %+v", n, r.status().Sessions)
	}
}

// pinned insists on a guard that outlives the daemon.
func (r *rig) pinned() {
	r.t.Helper()
	if st := r.status(); st.Witness.Guard == "" || st.Witness.Error != "" || st.Witness.Mode != "drop" {
		r.t.Fatalf("the unit has pinned no guard: %+v", st.Witness)
	}
}

const marker = "secret"

// site is a packet's way to the target: port and marker that nothing else uses.
func site() (testenv.Blast, testenv.Filter) {
	dst := netip.AddrPortFrom(testenv.TargetAddr, 5000)
	f := testenv.To(testenv.TargetAddr.String())
	f.Proto, f.Port, f.Marker = unix.IPPROTO_UDP, dst.Port(), marker
	return testenv.Blast{Dst: dst, Marker: marker}, f
}

// sending sends to the target by the LAN's device, whatever the routes say, all
// the while that f runs, and returns how many packets it tried and how many the
// LAN saw. At least some are tried after f's end.
func (r *rig) sending(f func()) (tried, seen int) {
	r.t.Helper()
	blast, filter := site()
	blast.Device, blast.Rate, blast.Count = "eth0", 100, 1<<30
	lan := r.Leaks(r.t, filter)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan int, 1)
	go func() {
		sent, err := r.Client.Blast(ctx, blast)
		if err != nil {
			r.t.Errorf("sender: %v", err)
		}
		n := sent.Packets
		for _, refused := range sent.Refused {
			n += refused
		}
		done <- n
	}()
	f()
	blast.Count = 20
	r.Client.Send(r.t, blast)
	cancel()
	tried = <-done + blast.Count
	lan.Settle(300 * time.Millisecond)
	got, err := lan.Stop()
	if err != nil || got.Lost > 0 {
		r.t.Errorf("the count on the LAN is not exact: %v, %v", got, err)
	}
	return tried, int(got.Packets)
}

// none insists that nothing leaves by the LAN while f runs.
func (r *rig) none(when string, f func()) {
	r.t.Helper()
	tried, seen := r.sending(f)
	r.t.Logf("measured: %s: %d of %d left", when, seen, tried)
	if seen != 0 || tried < 20 {
		r.t.Errorf("%s: %d of %d packets left by the LAN", when, seen, tried)
	}
}

// open is the control: with nothing to stop them, packets do leave.
func (r *rig) open(when string) {
	r.t.Helper()
	if tried, seen := r.sending(func() {}); seen < tried/2 {
		r.t.Fatalf("%s: control: only %d of %d packets left by the LAN: nothing can be proved", when, seen, tried)
	}
}

// arrives insists that ordinary packets for the target come through the tunnel
// and none by the LAN. A VPN that reconnects on a busy machine is waited for: what
// is sent meanwhile may be lost, but not leave.
func (r *rig) arrives(when string) {
	r.t.Helper()
	blast, filter := site()
	out := r.Leaks(r.t, filter)
	probe := r.Arrived(r.t, filter)
	blast.Count = 1
	if !testenv.Until(patience, func() bool { r.Client.Send(r.t, blast); return probe.Packets() > 0 }) {
		r.t.Errorf("%s: the tunnel carries nothing", when)
	}
	probe.Settle(300 * time.Millisecond)
	in := r.Arrived(r.t, filter)
	blast.Count, blast.Rate = 40, 400
	r.Client.Send(r.t, blast)
	in.Wait(uint64(blast.Count), patience)
	if got, leaked := in.Packets(), out.Packets(); got != uint64(blast.Count) || leaked != 0 {
		r.t.Errorf("%s: of %d packets %d arrived and %d left by the LAN", when, blast.Count, got, leaked)
	}
}

// mainPID is the unit's process, "0" when it has none.
func (r *rig) mainPID() string {
	r.t.Helper()
	return strings.TrimSpace(r.sh("systemctl show -P MainPID culvert"))
}

// killed ends the daemon by a signal and waits until systemd has started it
// again, and it answers.
func (r *rig) killed(signal string) {
	r.t.Helper()
	old := r.mainPID()
	r.sh("kill -%s %s", signal, old)
	r.eventually("systemd starts it again after SIG"+signal,
		fmt.Sprintf(`pid=$(systemctl show -P MainPID culvert); [ $pid != 0 ] && [ $pid != %s ] && systemctl is-active -q culvert`, old))
}
