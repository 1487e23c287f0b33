//go:build linux && vm

package guest

import (
	"strings"
	"testing"

	"github.com/culvert-project/culvert/testenv"
)

// tunnelled is a rig whose tunnel is a device that this process holds.
func tunnelled(t *testing.T) (*rig, *testenv.Tun) {
	t.Helper()
	r := newRig(t, testenv.LabOptions{NoVPN: true})
	tun := r.tunnel()
	r.open("before culvert")
	return r, tun
}

func (r *rig) tunnel() *testenv.Tun {
	r.t.Helper()
	tun := testenv.OpenTun(r.t, r.Client, "tun0", testenv.Prefixes("10.88.0.2/24")...)
	r.Client.IP(r.t, "route add", testenv.SiteNet.String(), "dev tun0")
	return tun
}

// upgrade puts another file in the binary's place, as a package does.
const upgrade = `cp /usr/bin/culvert /usr/bin/culvert.new && mv /usr/bin/culvert.new /usr/bin/culvert && systemctl try-restart culvert`

// TestUnitDrop: with on_leak: drop nothing gets out while the daemon is alive,
// killed, restarted, upgraded. A stop ends the drops: that is its promise.
func TestUnitDrop(t *testing.T) {
	r, _ := tunnelled(t)
	r.unit("on_leak: drop\n" + siteSession("tun0"))
	r.enforcing()
	r.pinned()
	r.none("alive", func() {})
	r.none("kill -9", func() { r.killed("KILL") })
	r.enforcing()
	r.none("restart", func() { r.sh("systemctl restart culvert") })
	r.none("upgrade", func() { r.sh(upgrade) })
	r.enforcing()
	if st := r.status(); !st.Witness.Adopted || st.Leaks.Dropped != st.Leaks.Packets || st.Leaks.Dropped == 0 {
		t.Errorf("the upgraded daemon has not taken over the drops with their counts: %+v", st)
	}
	r.sh("systemctl stop culvert")
	r.open("after the stop")
}

// TestUnitGuard: with on_loss: guard nothing gets out when the daemon is killed
// or upgraded, nor when the tunnel goes, and then not when the daemon is stopped
// either, until "culvert release".
func TestUnitGuard(t *testing.T) {
	r, tun := tunnelled(t)
	r.unit("on_loss: guard\n" + siteSession("tun0"))
	r.enforcing()
	r.pinned()
	r.none("alive", func() {})
	r.none("kill -9", func() { r.killed("KILL") })
	r.none("upgrade", func() { r.sh(upgrade) })
	r.enforcing()
	r.none("the tunnel goes", func() {
		if err := tun.Close(); err != nil {
			t.Error(err)
		}
		r.eventually("the guard holds", `culvert status --json | grep -q '"holding"'`)
	})
	r.none("kill -9 without the tunnel", func() { r.killed("KILL") })
	r.none("upgrade without the tunnel", func() { r.sh(upgrade) })
	r.none("stop without the tunnel", func() { r.sh("systemctl stop culvert") })
	r.none("stopped", func() {})
	r.none("start without the tunnel", func() { r.sh("systemctl start culvert") })
	r.none("the tunnel is back", func() { r.tunnel(); r.enforcing() })
	r.sh("systemctl stop culvert; culvert release")
	r.open("after release")
}

// TestUnitRestarts: what a crash of a Go program exits with is a reason to start
// again, bad configuration is none.
func TestUnitRestarts(t *testing.T) {
	r, _ := tunnelled(t)
	r.unit("on_leak: drop\n" + siteSession("tun0"))
	r.enforcing()
	r.none("SIGQUIT, which ends a Go program as a panic does", func() { r.killed("QUIT") })
	if out := r.sh("journalctl -q --no-pager -u culvert"); !strings.Contains(out, "status=2/INVALIDARGUMENT") {
		t.Errorf("the daemon did not exit with 2:\n%s", out)
	}
	r.enforcing()
	r.sh("systemctl stop culvert")
	r.write(configFile, "nonsense: true\n", 0o644)
	if out, err := try("systemctl start culvert"); err == nil {
		t.Errorf("the unit starts with a bad file:\n%s", out)
	}
	if got := strings.TrimSpace(r.sh("systemctl show -P NRestarts culvert; systemctl is-failed culvert")); !strings.HasSuffix(got, "failed") {
		t.Errorf("after a bad file the unit is %s, want failed", got)
	}
}

// TestUnitReload: the unit takes a changed file while it runs, all of it or
// nothing, and by SIGHUP as well. Nothing gets out meanwhile.
func TestUnitReload(t *testing.T) {
	r, _ := tunnelled(t)
	r.unit("on_leak: drop\n" + siteSession("tun0"))
	r.enforcing()
	pid := r.mainPID()
	const more = "    exclude: [172.31.9.0/24]\n"
	r.none("reload", func() {
		r.write(configFile, "on_leak: drop\n"+siteSession("tun0")+more, 0o644)
		r.sh("systemctl reload culvert")
	})
	r.sh("culvert status --json | grep -q 172.31.9.0/24")
	r.none("a bad file", func() {
		r.write(configFile, "on_leak: count\nnonsense: true\n", 0o644)
		if out, err := try("systemctl reload culvert"); err == nil {
			t.Errorf("a bad file is taken:\n%s", out)
		}
	})
	r.sh("culvert status --json | grep -q 172.31.9.0/24")
	r.none("SIGHUP", func() {
		r.write(configFile, "on_leak: drop\n"+siteSession("tun0"), 0o644)
		r.sh("systemctl kill -s HUP culvert")
		r.eventually("the file is read", "! culvert status --json | grep -q 172.31.9.0/24")
	})
	r.enforcing()
	if now := r.mainPID(); now != pid {
		t.Errorf("the daemon was %s and is %s", pid, now)
	}
}

// TestUnitHardened: systemd's own judgement of what the unit may do, 0 to 10.
func TestUnitHardened(t *testing.T) {
	r := &rig{t: t}
	out := r.sh("systemd-analyze security --no-pager culvert.service --threshold=25 || true")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	t.Logf("measured: %s", lines[len(lines)-1])
	if _, err := try("systemd-analyze security --no-pager culvert.service --threshold=25"); err != nil {
		t.Errorf("the exposure is more than 2.5:\n%s", out)
	}
}

// dropIn changes the unit for this case.
func (r *rig) dropIn(lines string) {
	r.t.Helper()
	const folder = "/run/systemd/system/culvert.service.d"
	r.write(folder+"/case.conf", "[Service]\n"+lines+"\n", 0o644)
	r.sh("systemctl daemon-reload")
	r.t.Cleanup(func() {
		_, _ = try("systemctl stop culvert; rm -r " + folder + "; systemctl daemon-reload; systemctl reset-failed culvert")
	})
}

// TestUnitSystemCalls: the unit's filter refuses system calls, and a refusal that a
// library passes over is not seen. Here each one kills: what the daemon does in its life
// needs none of them.
func TestUnitSystemCalls(t *testing.T) {
	r, tun := tunnelled(t)
	r.dropIn("SystemCallErrorNumber=kill")
	r.unit("on_leak: drop\non_loss: guard\n" + siteSession("tun0"))
	r.enforcing()
	r.pinned()
	r.attack()
	r.sh("culvert leaks; culvert status; culvert explain %s; systemctl reload culvert; systemctl restart culvert", testenv.TargetAddr)
	r.enforcing()
	r.none("the tunnel goes", func() {
		if err := tun.Close(); err != nil {
			t.Error(err)
		}
		r.eventually("the guard holds", `culvert status --json | grep -q '"holding"'`)
	})
	r.tunnel()
	r.enforcing()
	r.sh("systemctl stop culvert; culvert release")
	if got := strings.Fields(r.sh("systemctl show -P Result -P NRestarts culvert")); len(got) != 2 || got[0] != "success" || got[1] != "0" {
		t.Errorf("the unit's result and restarts are %v:\n%s", got, r.sh("journalctl -q --no-pager -n 60 -u culvert"))
	}
	r.refused()
}

// refused is the control: where the filter refuses what the daemon does need, it is killed.
func (r *rig) refused() {
	r.t.Helper()
	r.dropIn("SystemCallErrorNumber=kill\nSystemCallFilter=~bpf\nRestart=no")
	if out, err := try("systemctl start culvert"); err == nil {
		r.t.Fatalf("control: the unit starts without bpf: nothing can be proved\n%s", out)
	}
	if out := r.sh("journalctl -q --no-pager -n 20 -u culvert"); !strings.Contains(out, "status=31/SYS") {
		r.t.Errorf("control: the daemon was not killed for its call:\n%s", out)
	}
}
