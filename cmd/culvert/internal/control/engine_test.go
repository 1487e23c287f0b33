//go:build linux || windows

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/culvert-project/culvert/cmd/culvert/internal/report"
	"github.com/culvert-project/culvert/enforce"
)

// fakeEngine knows one session, tun0.
type fakeEngine struct {
	opened, watching atomic.Int64
	crowded          atomic.Bool
}

func (f *fakeEngine) Open(ctx context.Context, s enforce.Session) (enforce.SessionStatus, error) {
	f.opened.Add(1)
	switch s.Tunnel {
	case "bad":
		return enforce.SessionStatus{}, fmt.Errorf("open: %w", &enforce.InputError{Input: "bad", Text: "no such interface"})
	case "slow":
		<-ctx.Done()
		return enforce.SessionStatus{}, ctx.Err()
	}
	return enforce.SessionStatus{Tunnel: s.Tunnel, State: enforce.Enforcing, Protected: s.Protect}, nil
}

func (f *fakeEngine) Close(_ context.Context, tunnel string) (enforce.SessionStatus, error) {
	if tunnel != "tun0" {
		return enforce.SessionStatus{}, fmt.Errorf("%s: %w", tunnel, enforce.ErrNoSession)
	}
	return enforce.SessionStatus{Tunnel: tunnel, State: enforce.Restored}, nil
}

func (f *fakeEngine) Leave(ctx context.Context, tunnel string) (enforce.SessionStatus, error) {
	return f.Close(ctx, tunnel)
}

func (f *fakeEngine) Preview(context.Context, []enforce.Session) (enforce.Preview, error) {
	return enforce.Preview{Reported: []string{"one"}}, nil
}

func (f *fakeEngine) Reload(context.Context) (enforce.Reloaded, error) {
	return enforce.Reloaded{Kept: []string{"tun0"}}, nil
}

func (f *fakeEngine) Gateways() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("192.168.1.1/32")}
}

func (f *fakeEngine) Sessions(context.Context) ([]enforce.Session, error) {
	return []enforce.Session{{Tunnel: "tun0"}}, nil
}

func (f *fakeEngine) Status(context.Context) (report.Status, error) {
	return report.Status{
		Sessions: []report.Session{{SessionStatus: enforce.SessionStatus{Tunnel: "tun0", State: enforce.Enforcing}}},
		Witness:  report.Witness{Mode: report.Off, Reason: "a test"},
	}, nil
}

func (f *fakeEngine) Leaks(context.Context) (*report.Leaks, report.Witness, error) {
	return &report.Leaks{Totals: report.Totals{Packets: 3}}, report.Witness{Mode: report.Drop}, nil
}

// Watch tells of three incidents, then of nothing.
func (f *fakeEngine) Watch(ctx context.Context, tell func(report.Event) error) error {
	if f.crowded.Load() {
		return errors.New("too many")
	}
	for i := range 3 {
		in := report.Incident{Incident: enforce.Incident{ID: uint64(i)}}
		if err := tell(report.Event{Kind: "incident", Incident: &in}); err != nil {
			return err
		}
	}
	f.watching.Add(1)
	<-ctx.Done()
	f.watching.Add(-1)
	return nil
}

func (f *fakeEngine) Release(context.Context) (report.Released, error) {
	return report.Released{Tunnels: []string{"tun0"}, Routes: 2}, nil
}

// serve starts a server and returns its socket; it ends with the test.
func serve(t *testing.T, e Engine) string {
	t.Helper()
	path := endpoint(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := Server{Engine: e, Daemon: Daemon{PID: 7, Program: "test"}}
	go func() { done <- s.Serve(ctx, l) }()
	warm(t, path)
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		left(t, path)
	})
	return path
}

func TestAsk(t *testing.T) {
	path := serve(t, &fakeEngine{})
	tests := []struct {
		name string
		req  Request
		want string // the response, or the error's code and message
	}{
		{"ping", Request{Op: Ping}, `{"version":1,"daemon":{"pid":7,"program":"test"}}`},
		{"open", Request{Op: Open, Session: &enforce.Session{Tunnel: "tun0", Protect: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
			`{"version":1,"daemon":{"pid":7,"program":"test"},"session":{"tunnel":"tun0","state":"enforcing","protected":["10.0.0.0/8"],"excluded":null,"removed":0,"readded":0,"restored":0,"withdrawn":0,"held":null,"contested":null,"unenforceable":null,"notes":null}}`},
		{"bad input", Request{Op: Open, Session: &enforce.Session{Tunnel: "bad"}}, "input: open: bad: no such interface"},
		{"close", Request{Op: Close, Tunnel: "tun0"}, `{"version":1,"session":{"tunnel":"tun0","state":"restored","protected":null,"excluded":null,"removed":0,"readded":0,"restored":0,"withdrawn":0,"held":null,"contested":null,"unenforceable":null,"notes":null}}`},
		{"leave", Request{Op: Leave, Tunnel: "tun9"}, "no_session: tun9: no session"},
		{"leave nothing", Request{Op: Leave}, "protocol: request: leave has too much or too little beside it"},
		{"plan", Request{Op: Plan, Sessions: []enforce.Session{{Tunnel: "tun0"}}}, `{"version":1,"preview":{"actions":null,"missing":null,"reported":["one"],"one_family":null,"unenforceable":null,"notes":null}}`},
		{"plan nothing", Request{Op: Plan}, "protocol: request: plan has too much or too little beside it"},
		{"reload", Request{Op: Reload}, `{"version":1,"reloaded":{"opened":null,"changed":null,"closed":null,"kept":["tun0"]}}`},
		{"no session", Request{Op: Close, Tunnel: "tun9"}, "no_session: tun9: no session"},
		{"status", Request{Op: Status}, `{"version":1,"daemon":{"pid":7,"program":"test"},"status":{"sessions":[{"tunnel":"tun0","state":"enforcing","protected":null,"excluded":null,"removed":0,"readded":0,"restored":0,"withdrawn":0,"held":null,"contested":null,"unenforceable":null,"notes":null}],"totals":{"removed":0,"readded":0,"restored":0,"withdrawn":0},"incidents":null,"witness":{"mode":"off","reason":"a test","suppressed":0,"lost":0,"interfaces":null}}}`},
		{"leaks", Request{Op: Leaks}, `{"version":1,"leaks":{"packets":3,"bytes":0,"dropped":0,"by":null},"witness":{"mode":"drop","suppressed":0,"lost":0,"interfaces":null}}`},
		{"release", Request{Op: Release}, `{"version":1,"released":{"tunnels":["tun0"],"routes":2}}`},
		{"unknown", Request{Op: "dance"}, `protocol: request: operation "dance" is unknown`},
		{"open nothing", Request{Op: Open}, "protocol: request: open has too much or too little beside it"},
		{"too much", Request{Op: Status, Tunnel: "tun0"}, "protocol: request: status has too much or too little beside it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := Ask(context.Background(), path, tt.req)
			got := fmt.Sprint(err)
			var remote *Error
			if errors.As(err, &remote) {
				got = string(remote.Code) + ": " + remote.Message
			} else if err == nil {
				b, _ := json.Marshal(resp)
				got = string(b)
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	if _, err := Ask(context.Background(), path, Request{Op: Close, Tunnel: "tun9"}); !errors.Is(err, enforce.ErrNoSession) {
		t.Errorf("%v is not ErrNoSession", err)
	}
}
