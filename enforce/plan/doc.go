// Package plan decides, and only decides: which routes of a main table
// conflict with a VPN's, what must exist, what comes back.
//
// Everything here is a pure function of its arguments. There is no clock, no
// I/O, no log and no operating-system type, so every rule can be checked on
// any machine and against a slow oracle.
//
// The promise that the decisions serve: for every destination inside a
// protected prefix, outside the exclusions and the ignored ranges, for every
// TOS and both families, the main table selects a route whose every next hop
// is the tunnel.
//
// Two functions share one set of rules:
//
//   - [Judge] judges a single route against the policy alone. Its cost does not
//     depend on the size of any table and it does not allocate, so it can stand
//     between a notification and its answer.
//   - [Make] judges a whole table, streamed once and never copied, and returns
//     the actions that make it right. Connecting, being attacked, disconnecting
//     and recovering from a crash are all this one call: a disconnect is Make
//     under a policy without sessions.
package plan
