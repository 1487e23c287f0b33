package main

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// notifyHandover delivers the signal by which systemd restarts the daemon
// (RestartKillSignal= in its unit): everything stays as it is for the next one.
func notifyHandover(c chan<- os.Signal) { signal.Notify(c, unix.SIGUSR2) }
