// Package enforcetest holds what tests of an Enforcer stand on: an in-memory
// routing [Table] that follows Linux's rules, a [System] and a [Journal] over
// it with fault injection, and [Conform], the one suite that every
// [enforce.System] must pass, the real ones included.
//
// Table is written from the kernel's side, as a list searched by brute force.
// It shares no rule with package plan, so it can serve as plan's oracle.
package enforcetest
