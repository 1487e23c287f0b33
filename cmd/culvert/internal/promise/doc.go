// Package promise holds the tests of the two words that culvert gives, on the
// real kernel and on random input:
//
//   - while a session is open, every protected address goes to its tunnel, for
//     every TOS and source;
//   - afterwards the main table is what it was, byte for byte, whatever was
//     killed on the way.
//
// Policies, tables, attacks and moments of death follow from a seed. A failure
// names its seed, and -seed N runs that one alone. What should be is computed
// from the policy's lists and from what "ip" and the kernel say, by no code of
// package plan.
package promise
