package enforce

import (
	"net/netip"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// Journal remembers, beyond a crash, the routes that must come back.
//
// The order is write down, then delete; give back, then cross out. So after a
// crash the journal may name a route that was never deleted or is back
// already, but a route that is out is always in it. Giving back is idempotent.
type Journal interface {
	// Load returns the entries that are not crossed out, oldest first.
	Load() ([]Entry, error)
	// Hold writes the entries down. They are durable when it returns nil;
	// otherwise none may be relied on. One whose ID is held already takes the place
	// of what it said; should that fail, what it said stands.
	Hold(entries []Entry) error
	// Forget crosses entries out. Unknown IDs are ignored.
	Forget(ids []uint64) error
}

// Entry is one held route as the journal keeps it.
type Entry struct {
	ID    uint64         `json:"id"`
	Route plan.Route     `json:"route"`
	Links []LinkID       `json:"links"` // the interfaces of its legs, as they were
	Taken time.Duration  `json:"taken"` // uptime when it was removed, or its lifetime was renewed
	Since time.Time      `json:"since"`
	Place uint64         `json:"place,omitempty"` // of an older copy that it replaced; see plan.Held
	First bool           `json:"first,omitempty"`
	Nets  []netip.Prefix `json:"nets,omitempty"` // the networks that its interfaces were in
}

// LinkID tells whether an interface is still the one it was.
type LinkID struct {
	Index uint32 `json:"index"`
	Name  string `json:"name"`
	HW    string `json:"hw,omitempty"`

	Type plan.LinkType `json:"type,omitzero"` // set for a tunnel alone, not for the interfaces of held routes
}

// Binding is what a journal is valid for: interface indices mean nothing after
// a reboot or in another network namespace.
type Binding struct {
	Boot      string `json:"boot"`
	Namespace string `json:"namespace"`
}

// SessionStore remembers the open sessions beyond the process: a VPN does not run its
// hooks again because culvert was restarted.
type SessionStore interface {
	LoadSessions() ([]KeptSession, error)
	KeepSessions([]KeptSession) error // replaces what was kept; durable on return
}

// KeptSession is an open session and the interface that was its tunnel.
type KeptSession struct {
	Session Session `json:"session"`
	Link    LinkID  `json:"link"`
	Own     bool    `json:"own,omitempty"` // the configuration opened it: of Session only Tunnel is kept
}
