package winroute

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/culvert-project/culvert/enforce/enforcetest"
)

// TestReal makes every call that changes no route on the system it runs on, and
// says what each came to. Lines that begin with "covered" or "lacking" are for
// whoever runs it elsewhere.
func TestReal(t *testing.T) {
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	k := s.k
	say := func(call string, err error, what string) {
		if err != nil {
			fmt.Printf("lacking %s: %v\n", call, err)
			return
		}
		fmt.Printf("covered %s: %s\n", call, what)
	}
	links, err := tried("GetIfTable2Ex", k.links)
	say("GetIfTable2Ex", err, fmt.Sprint(len(links)/linkLen, " interfaces"))
	addresses, err := tried("GetUnicastIpAddressTable", k.addresses)
	say("GetUnicastIpAddressTable", err, fmt.Sprint(len(addresses)/addressLen, " addresses"))
	interfaces, err := tried("GetIpInterfaceTable", k.interfaces)
	say("GetIpInterfaceTable", err, fmt.Sprint(len(interfaces)/ifaceLen, " interface metrics"))
	sc, ok := parseScene(links, addresses, interfaces)
	if !ok {
		t.Error("interfaces cannot be read")
	}
	for _, l := range sc.links {
		fmt.Printf("interface %d %q up %v %s %v\n", l.Index, l.Name, l.Up, l.HW, l.Addrs)
	}
	readReal(t, s, &sc, say)
	id, err := k.boot()
	again, _ := k.boot()
	if err == nil && (id == "" || id != again) {
		t.Errorf("the boot is %q and then %q", id, again)
	}
	say("RegCreateKeyExW", err, "boot "+id)
	say("GetTickCount64", nil, k.uptime().Round(time.Minute).String())
	watchReal(t, k, say)
}

func readReal(t *testing.T, s *System, sc *scene, say func(string, error, string)) {
	t.Helper()
	list, err := s.rows()
	say("GetIpForwardTable2", err, fmt.Sprint(len(list), " routes"))
	for _, r := range list {
		if p, ok := s.parse(sc, r); ok {
			fmt.Println("route", enforcetest.Text(p))
		}
	}
	if len(list) == 0 {
		return
	}
	found := append(row(nil), list[0]...)
	_, err = tried("GetIpForwardEntry2", func() ([]byte, error) { return nil, s.k.entry(found) })
	if err == nil && !found.same(list[0]) {
		t.Errorf("looked up %x, want %x", found, list[0])
	}
	say("GetIpForwardEntry2", err, "the first route by its key")
}

func watchReal(t *testing.T, k kernel, say func(string, error, string)) {
	t.Helper()
	_, err := tried("notify", func() ([]byte, error) {
		stop, err := k.notify(func(uint32, row) {}, func(string) {})
		if err == nil {
			stop()
		}
		return nil, err
	})
	say("NotifyRouteChange2", err, "registered and cancelled, interfaces and addresses too")
	for _, proc := range []*windows.LazyProc{procCreate, procDelete} {
		say(proc.Name, proc.Find(), "is there; not called")
	}
}

// tried makes a call that may be missing from the system's DLL, which
// golang.org/x/sys/windows answers with a panic.
func tried(name string, call func() ([]byte, error)) (b []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: %v", name, r)
		}
	}()
	return call()
}
