package winroute

import (
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// What golang.org/x/sys/windows does not have.
var (
	iphlpapi   = windows.NewLazySystemDLL("iphlpapi.dll")
	procCreate = iphlpapi.NewProc("CreateIpForwardEntry2")
	procDelete = iphlpapi.NewProc("DeleteIpForwardEntry2")

	advapi32      = windows.NewLazySystemDLL("advapi32.dll")
	procCreateKey = advapi32.NewProc("RegCreateKeyExW")
)

// New returns the routing of this machine. Reading needs no privilege; changing
// routes needs an elevated administrator.
func New() (*System, error) {
	k := &windowsKernel{}
	// Windows keeps callbacks for the life of the process: one set serves every watch.
	k.onRoute = windows.NewCallback(func(_ uintptr, r *[rowLen]byte, change uint32) uintptr {
		k.call(func(route func(uint32, row), _ func(string)) {
			if r != nil {
				route(change, r[:])
			}
		})
		return 0
	})
	k.onInterface = windows.NewCallback(func(_, _ uintptr, _ uint32) uintptr {
		k.call(func(_ func(uint32, row), hint func(string)) { hint("interface changed") })
		return 0
	})
	k.onAddress = windows.NewCallback(func(_, _ uintptr, _ uint32) uintptr {
		k.call(func(_ func(uint32, row), hint func(string)) { hint("address changed") })
		return 0
	})
	return newSystem(k), nil
}

type windowsKernel struct {
	onRoute, onInterface, onAddress uintptr

	mu    sync.RWMutex // guards route and hint
	route func(uint32, row)
	hint  func(string)
}

func (k *windowsKernel) call(f func(func(uint32, row), func(string))) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.route != nil {
		f(k.route, k.hint)
	}
}

// tableHead is NumEntries and the room up to the first row, in every table.
const tableHead = 8

// copyTable copies a table's rows out and frees it.
func copyTable(table unsafe.Pointer, size int) []byte {
	n := *(*uint32)(table)
	b := make([]byte, int(n)*size)
	copy(b, unsafe.Slice((*byte)(unsafe.Add(table, tableHead)), len(b)))
	windows.FreeMibTable(table)
	return b
}

func (k *windowsKernel) routes() ([]byte, error) {
	var t *windows.MibIpForwardTable2
	if err := windows.GetIpForwardTable2(windows.AF_UNSPEC, &t); err != nil {
		return nil, fmt.Errorf("GetIpForwardTable2: %w", err)
	}
	return copyTable(unsafe.Pointer(t), rowLen), nil
}

func (k *windowsKernel) links() ([]byte, error) {
	var t *windows.MibIfTable2
	if err := windows.GetIfTable2Ex(windows.MibIfTableNormalWithoutStatistics, &t); err != nil {
		return nil, fmt.Errorf("GetIfTable2Ex: %w", err)
	}
	return copyTable(unsafe.Pointer(t), linkLen), nil
}

func (k *windowsKernel) addresses() ([]byte, error) {
	var t *windows.MibUnicastIpAddressTable
	if err := windows.GetUnicastIpAddressTable(windows.AF_UNSPEC, &t); err != nil {
		return nil, fmt.Errorf("GetUnicastIpAddressTable: %w", err)
	}
	return copyTable(unsafe.Pointer(t), addressLen), nil
}

func (k *windowsKernel) interfaces() ([]byte, error) {
	var t *windows.MibIpInterfaceTable
	if err := windows.GetIpInterfaceTable(windows.AF_UNSPEC, &t); err != nil {
		return nil, fmt.Errorf("GetIpInterfaceTable: %w", err)
	}
	return copyTable(unsafe.Pointer(t), ifaceLen), nil
}

// aligned copies a row to where a MIB_IPFORWARD_ROW2 may be.
func aligned(r row) *windows.MibIpForwardRow2 {
	var m windows.MibIpForwardRow2
	copy(bytesOf(&m), r)
	return &m
}

func bytesOf(m *windows.MibIpForwardRow2) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(m)), rowLen)
}

func (k *windowsKernel) entry(r row) error {
	m := aligned(r)
	err := windows.GetIpForwardEntry2(m)
	if err == nil {
		copy(r, bytesOf(m))
	}
	return err
}

func (k *windowsKernel) create(r row) error { return change(procCreate, r) }
func (k *windowsKernel) delete(r row) error { return change(procDelete, r) }

func change(proc *windows.LazyProc, r row) error {
	if err := proc.Find(); err != nil {
		return err
	}
	m := aligned(r)
	if code, _, _ := syscall.SyscallN(proc.Addr(), uintptr(unsafe.Pointer(m))); code != 0 {
		return fmt.Errorf("%s: %w", proc.Name, syscall.Errno(code))
	}
	return nil
}

func (k *windowsKernel) notify(route func(uint32, row), hint func(string)) (stop func(), err error) {
	k.mu.Lock()
	k.route, k.hint = route, hint
	k.mu.Unlock()
	var handles [3]windows.Handle
	err = errors.Join(
		windows.NotifyRouteChange2(windows.AF_UNSPEC, k.onRoute, nil, false, &handles[0]),
		windows.NotifyIpInterfaceChange(windows.AF_UNSPEC, k.onInterface, nil, false, &handles[1]),
		windows.NotifyUnicastIpAddressChange(windows.AF_UNSPEC, k.onAddress, nil, false, &handles[2]),
	)
	stop = func() {
		for _, h := range handles {
			if h != 0 {
				_ = windows.CancelMibChangeNotify2(h)
			}
		}
		k.mu.Lock()
		k.route, k.hint = nil, nil
		k.mu.Unlock()
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("register for notifications: %w", err)
	}
	return stop, nil
}

func (k *windowsKernel) uptime() time.Duration { return windows.DurationSinceBoot() }

// bootKey is volatile: it is gone after a restart, and with it the boot's name.
const (
	bootKey     = `SOFTWARE\culvert\boot`
	bootValue   = "id"
	regVolatile = 1 // REG_OPTION_VOLATILE
)

func (k *windowsKernel) boot() (string, error) {
	parent, _, err := registry.CreateKey(registry.LOCAL_MACHINE, `SOFTWARE\culvert`, registry.READ)
	if err != nil {
		return "", fmt.Errorf(`create SOFTWARE\culvert: %w`, err)
	}
	defer parent.Close()
	path, err := windows.UTF16PtrFromString(bootKey)
	if err != nil {
		return "", err
	}
	var h windows.Handle
	code, _, _ := syscall.SyscallN(procCreateKey.Addr(), uintptr(registry.LOCAL_MACHINE), uintptr(unsafe.Pointer(path)), 0, 0,
		regVolatile, registry.READ|registry.WRITE, 0, uintptr(unsafe.Pointer(&h)), 0)
	if code != 0 {
		return "", fmt.Errorf("create %s: %w", bootKey, syscall.Errno(code))
	}
	key := registry.Key(h)
	defer key.Close()
	if id, _, err := key.GetStringValue(bootValue); err == nil {
		return id, nil
	}
	id := rand.Text()
	return id, key.SetStringValue(bootValue, id)
}
