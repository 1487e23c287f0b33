// Package witness joins what the enforcer knows of routes with what the loader
// counts of packets. Neither knows the other: policies go one way, wake-ups the
// other, and both meet in the [Join]'s ledger, which says for each incident what
// leaked while it lasted, and for each leak without an incident how it went past
// the tunnel.
//
//	enforcer ── Protection ──► keeper ── Config ──► probe (the loader)
//	    ▲  └──── Incident ───► ledger ◄── counters, senders, samples ──┘
//	    └─────── Wake ──────────┘ └──► report, feed (status, leaks, watch)
//
// The ledger is a pure function of what it is handed and the time; the keeper
// has the only lock.
package witness
