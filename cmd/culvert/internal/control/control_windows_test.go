package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

// endpoint is a pipe that is not there yet.
func endpoint(*testing.T) string {
	return fmt.Sprintf(`\\.\pipe\ProtectedPrefix\Administrators\culvert-test-%d-%d`, os.Getpid(), time.Now().UnixNano())
}

// warm connects once and stays. Windows keeps everybody off the first instance
// of a pipe, which only holds its name; Wine gives it to the first who comes.
func warm(t *testing.T, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
}

// left looks whether a server took its pipe away.
func left(t *testing.T, path string) {
	t.Helper()
	if err := ask(path); !errors.Is(err, ErrAway) {
		t.Errorf("the pipe stayed: %v", err)
	}
}

func ask(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := Ask(ctx, path, Request{Op: Ping})
	return err
}

// TestPipeTaken: a pipe that somebody answers on is never joined.
func TestPipeTaken(t *testing.T) {
	if windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil {
		t.Skip("Wine gives one name to two")
	}
	path := serve(t, &fakeEngine{})
	if l, err := Listen(path); !errors.Is(err, ErrTaken) {
		t.Errorf("a second one got %v, %v", l, err)
	}
	if err := ask(path); err != nil {
		t.Errorf("the first does not answer any more: %v", err)
	}
}

func TestPipeAway(t *testing.T) {
	if err := ask(endpoint(t)); !errors.Is(err, ErrAway) {
		t.Errorf("nobody is there: %v", err)
	}
	if _, err := Listen(`C:\culvert.sock`); !errors.Is(err, errNoPipe) {
		t.Errorf("a file: %v", err)
	}
}
