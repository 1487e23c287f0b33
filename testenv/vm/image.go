//go:build linux

package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed packages.txt
var allPackages string

//go:embed quick-packages.txt
var quickPackages string

//go:embed recipe.sh
var recipe []byte

const (
	suite      = "bookworm"
	imageBound = 15 * time.Minute
	imageKept  = 30 * 24 * time.Hour // unused images are removed after this
)

// image is a Debian root with what boots it, in a folder of the cache. It is
// never written to after it was made.
type image struct{ dir string }

func (i image) root() string   { return filepath.Join(i.dir, "root.img") }
func (i image) kernel() string { return filepath.Join(i.dir, "vmlinuz") }
func (i image) initrd() string { return filepath.Join(i.dir, "initrd") }

// cacheDir is where images are kept, outside the tree.
func cacheDir() (string, error) {
	if dir := os.Getenv("CULVERT_VM_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for images: %w; set CULVERT_VM_CACHE", err)
	}
	return filepath.Join(base, "culvert", "vm"), nil
}

// openImage finds the image of a list of packages, or makes it. Its name is the
// hash of all that it is made from. One process makes it, others wait for that.
func openImage(ctx context.Context, packages string) (image, error) {
	cache, err := cacheDir()
	if err != nil {
		return image{}, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return image{}, fmt.Errorf("make image folder: %w", err)
	}
	sum := sha256.Sum256(append([]byte(suite+packages), recipe...))
	img := image{filepath.Join(cache, fmt.Sprintf("%s-%x", suite, sum[:8]))}
	ctx, cancel := context.WithTimeout(ctx, imageBound)
	defer cancel()
	unlock, err := lock(ctx, img.dir+".lock")
	if err != nil {
		return img, err
	}
	defer unlock()
	if _, err := os.Stat(img.root()); err == nil {
		now := time.Now()
		return img, os.Chtimes(img.dir, now, now)
	}
	if err := img.make(ctx, packages); err != nil {
		return img, err
	}
	return img, prune(cache, img.dir)
}

// lock waits until no other process makes this image.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the image: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the image: %w", err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("another process has been making %s for %v", path, imageBound), f.Close())
		case <-time.After(time.Second):
		}
	}
}

// make builds the image beside its place and moves it there whole.
func (i image) make(ctx context.Context, packages string) error {
	mirror := debianMirror()
	begin := time.Now()
	say("making an image of %d packages from %s", len(strings.Fields(packages)), cmp.Or(mirror, "Debian's own mirror"))
	tmp := i.dir + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return fmt.Errorf("make image folder: %w", err)
	}
	defer os.RemoveAll(tmp)
	root := filepath.Join(tmp, "root")
	if err := bootstrap(ctx, tmp, root, mirror, packages); err != nil {
		return err
	}
	if err := pack(ctx, tmp, root); err != nil {
		return err
	}
	if err := os.Rename(tmp, i.dir); err != nil {
		return fmt.Errorf("put the image in its place: %w", err)
	}
	say("image made in %.0f s", time.Since(begin).Seconds())
	return nil
}

// bootstrap installs the packages. Nothing of it waits for an answer: a mirror
// that does not speak is an error after some tries.
func bootstrap(ctx context.Context, tmp, root, mirror, packages string) error {
	hook := filepath.Join(tmp, "recipe.sh")
	if err := os.WriteFile(hook, recipe, 0o755); err != nil {
		return fmt.Errorf("write recipe: %w", err)
	}
	args := []string{"--quiet", "--mode=root", "--variant=minbase", "--architectures=amd64",
		"--aptopt=Acquire::Retries \"3\"", "--aptopt=Acquire::http::Timeout \"30\"", "--aptopt=Acquire::https::Timeout \"30\"",
		"--include=" + strings.Join(strings.Fields(packages), ","), "--customize-hook=" + hook}
	for _, key := range []string{"Acquire::http::Proxy", "Acquire::https::Proxy"} {
		if v, err := exec.Command("apt-config", "dump", "--format=%v", key).Output(); err == nil && len(v) > 0 {
			args = append(args, fmt.Sprintf("--aptopt=%s %q", key, v))
		}
	}
	args = append(args, suite, root)
	if mirror != "" {
		args = append(args, "deb "+mirror+" "+suite+" main")
	}
	out, err := run(ctx, "mmdebstrap", args...)
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v", imageBound)
	}
	if err != nil {
		return fmt.Errorf("get and install Debian's packages from %s (CULVERT_VM_MIRROR names another): %w\n%s",
			cmp.Or(mirror, "Debian's own mirror"), err, tail(out, 15))
	}
	return nil
}

// pack makes the disk and takes out what QEMU boots.
func pack(ctx context.Context, tmp, root string) error {
	boot := filepath.Join(root, "boot")
	script := fmt.Sprintf(`cp %[1]s/vmlinuz-* %[2]s/vmlinuz && cp %[1]s/initrd.img-* %[2]s/initrd && rm -rf %[1]s/* &&
		size=$(du -sm %[3]s | cut -f1) && mke2fs -q -t ext4 -O ^has_journal -d %[3]s %[2]s/root.img $((size * 5 / 4 + 300))M &&
		rm -rf %[3]s`, boot, tmp, root)
	if out, err := run(ctx, "sh", "-c", script); err != nil {
		return fmt.Errorf("pack the image: %w\n%s", err, tail(out, 15))
	}
	return nil
}

// debianMirror is where this machine's own Debian comes from, or "" where it is none, as Ubuntu: then
// mmdebstrap knows one.
func debianMirror() string {
	if m := os.Getenv("CULVERT_VM_MIRROR"); m != "" {
		return m
	}
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Label: Debian").Output()
	if sites := strings.Fields(string(out)); err == nil && len(sites) > 0 {
		return sites[0]
	}
	return ""
}

// prune removes images, and what is left of half-made ones, that nothing has
// used for a long time.
func prune(cache, keep string) error {
	paths, err := filepath.Glob(filepath.Join(cache, suite+"-*"))
	if err != nil {
		return fmt.Errorf("look for old images: %w", err)
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || strings.HasPrefix(path, keep) || time.Since(info.ModTime()) < imageKept {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove old image: %w", err)
		}
	}
	return nil
}

// run runs a program to its end and returns all that it said. With ctx it and
// its children go.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w", name, err)
	}
	return string(out), nil
}

// tail is the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
