package main

import (
	"strings"
	"testing"
)

func TestDropFlags(t *testing.T) {
	cmd := newExplain()
	dropFlags(cmd.Flags(), noRules[:])
	dropFlags(cmd.Flags(), []string{"no-such-flag"})
	for _, name := range noRules {
		if strings.Contains(cmd.Flags().FlagUsages(), "--"+name+" ") {
			t.Errorf("--%s is in the help", name)
		}
		err := cmd.Flags().Set(name, "1")
		if err == nil || !strings.Contains(err.Error(), "\"--"+name+"\" flag: "+errLacking.Error()) {
			t.Errorf("--%s: %v", name, err)
		}
	}
	if err := cmd.Flags().Set("tunnel", "tun0"); err != nil {
		t.Errorf("another flag: %v", err)
	}
}
