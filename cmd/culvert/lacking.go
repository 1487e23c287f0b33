package main

import (
	"errors"

	"github.com/spf13/pflag"
)

// noRules are the flags that ask for routing rules or for further tables,
// which only Linux has.
var noRules = [...]string{"other-table", "tos", "mark", "uid", "device"}

// errLacking: the system has nothing that a flag could stand for.
var errLacking = errors.New("this system has one routing table and no rules that choose another; leave the flag out")

// dropFlags takes flags out of the help, and refuses them with one sentence
// where they are given all the same. A flag that is not there is no error.
func dropFlags(flags *pflag.FlagSet, names []string) {
	for _, name := range names {
		if f := flags.Lookup(name); f != nil {
			f.Hidden, f.Value = true, refusal{f.Value}
		}
	}
}

// refusal is a flag that cannot be set.
type refusal struct{ pflag.Value }

// Set refuses every value.
func (refusal) Set(string) error { return errLacking }
