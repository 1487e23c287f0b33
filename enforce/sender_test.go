package enforce_test

import (
	"errors"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/enforcetest"
)

func TestParseSender(t *testing.T) {
	for word, want := range map[string]string{
		"any": "any", "host": "host", "uid:0": "uid:0", "uid:4294967295": "uid:4294967295", "mark:0x10": "mark:16",
		"": "", "uid": "", "uid:": "", "uid:-1": "", "uid:4294967296": "", "mark:0": "", "mark:": "", "any:": "", "host:1": "", "pid:1": "",
	} {
		s, err := enforce.ParseSender(word)
		var input *enforce.InputError
		if want == "" {
			if !errors.As(err, &input) || input.Input != word {
				t.Errorf("%q: %v, %v", word, s, err)
			}
		} else if err != nil || s.String() != want {
			t.Errorf("%q: %v, %v; want %s", word, s, err, want)
		}
	}
}

// TestUnknownSender: a session whose transport comes from whom nobody knows is refused.
func TestUnknownSender(t *testing.T) {
	e, _ := run(t, newHost(t), &enforcetest.Journal{}, enforce.Options{})
	s := told
	s.ServerFrom = []string{"uid:0", "pid:1"}
	var input *enforce.InputError
	if _, err := e.Open(t.Context(), s); !errors.As(err, &input) || input.Input != "pid:1" {
		t.Errorf("opened: %v", err)
	}
}

// TestSendersAreReloaded: another sender in the configuration is a change of its session.
func TestSendersAreReloaded(t *testing.T) {
	e, _ := run(t, newHost(t), &enforcetest.Journal{}, enforce.Options{Own: []enforce.Session{said}})
	other := said
	other.ServerFrom = []string{"any"}
	done, err := e.Reload(t.Context(), []enforce.Session{other})
	if err != nil || len(done.Changed) != 1 {
		t.Errorf("%+v, %v", done, err)
	}
}
