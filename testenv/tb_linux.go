package testenv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"
)

// TB is the part of testing.TB that the helpers of this package use. A
// *testing.T or *testing.B is one; [Script] makes one for other programs.
// Fatalf and Skipf do not return, and must be called by the goroutine that
// was given the TB.
type TB interface {
	Helper()
	Name() string
	TempDir() string
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// ErrSkipped is returned by [Script] when its function called Skipf, which
// [Require] does when a tool is missing.
var ErrSkipped = errors.New("skipped")

// Script runs f outside of "go test". It returns when f and all functions
// that f registered with Cleanup have returned. Logf writes lines to w (nil
// discards them). The error joins what f reported with Errorf and Fatalf, or
// wraps [ErrSkipped]; it is nil when f reported nothing.
func Script(name string, w io.Writer, f func(TB)) error {
	if w == nil {
		w = io.Discard
	}
	s := &script{name: name, w: w}
	s.protect(func() { f(s) })
	for fn := s.pop(); fn != nil; fn = s.pop() {
		s.protect(fn)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}

// script is the TB of a program. mu guards w, errs and cleanups.
type script struct {
	name     string
	mu       sync.Mutex
	w        io.Writer
	errs     []error
	cleanups []func()
}

// protect runs f on a goroutine that Fatalf may end, and waits for it.
func (s *script) protect(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

func (s *script) pop() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.cleanups) - 1
	if last < 0 {
		return nil
	}
	f := s.cleanups[last]
	s.cleanups = s.cleanups[:last]
	return f
}

func (s *script) record(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

func (s *script) Helper()      {}
func (s *script) Name() string { return s.name }

func (s *script) TempDir() string {
	dir, err := os.MkdirTemp("", "testenv-")
	if err != nil {
		s.Fatalf("make a temporary folder: %v", err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (s *script) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *script) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.errs) > 0
}

func (s *script) Logf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintf(s.w, format+"\n", args...)
}

func (s *script) Errorf(format string, args ...any) {
	s.record(fmt.Errorf(format, args...))
}

func (s *script) Fatalf(format string, args ...any) {
	s.record(fmt.Errorf(format, args...))
	runtime.Goexit()
}

func (s *script) Skipf(format string, args ...any) {
	s.record(fmt.Errorf("%w: %s", ErrSkipped, fmt.Sprintf(format, args...)))
	runtime.Goexit()
}

// Until calls cond every few milliseconds until it is true and reports
// whether that happened before timeout. cond is called at least once, by the
// calling goroutine.
func Until(timeout time.Duration, cond func() bool) bool {
	for deadline := time.Now().Add(timeout); ; time.Sleep(5 * time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// Eventually is [Until] for tests: it stops the test when what (a few words
// for the message) has not come true before timeout.
func Eventually(t TB, timeout time.Duration, what string, cond func() bool) {
	t.Helper()
	if !Until(timeout, cond) {
		t.Fatalf("not within %v: %s", timeout, what)
	}
}
