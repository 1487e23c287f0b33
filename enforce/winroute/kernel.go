package winroute

import "time"

// kernel is what only Windows can do. It decides nothing. Rows are the IP
// Helper API's, one after the other, without their table's head.
type kernel interface {
	routes() ([]byte, error)     // GetIpForwardTable2
	links() ([]byte, error)      // GetIfTable2Ex
	addresses() ([]byte, error)  // GetUnicastIpAddressTable
	interfaces() ([]byte, error) // GetIpInterfaceTable
	entry(row) error             // GetIpForwardEntry2: fills in the row that its key names
	create(row) error            // CreateIpForwardEntry2
	delete(row) error            // DeleteIpForwardEntry2

	// notify calls route for every change of a route with its type and a row
	// that has nothing but its key, and hint for those of interfaces and
	// addresses, until stop, which waits for calls that run.
	notify(route func(change uint32, r row), hint func(what string)) (stop func(), err error)

	uptime() time.Duration // sleep included
	boot() (string, error) // an identity of this boot
}
