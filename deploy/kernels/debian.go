package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// A kernel that can be booted. absent says why it cannot.
type kernel struct {
	name    string
	image   string
	modules string // the folder that holds modules.dep
	absent  error
}

// releases are Debian's kernels that are supported: the oldest, the one of Debian 13
// and of Debian 12's backports, and the newest.
var releases = []struct{ version, what string }{
	{"6.1.", "Debian 12"},
	{"6.12.", "Debian 13"},
	{"7.", "Debian 13 backports"},
}

const sources = `deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian trixie main
deb http://deb.debian.org/debian trixie-backports main
deb http://deb.debian.org/debian-security bookworm-security main
deb http://deb.debian.org/debian-security trixie-security main
`

// cacheFolder outlives the run: a kernel is about 100 MB.
func cacheFolder() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = "/var/cache"
	}
	dir = filepath.Join(dir, "vpnlb-kernels")
	for _, sub := range []string{"lists/partial", "archives/partial", "deb"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", fmt.Errorf("make cache: %w", err)
		}
	}
	return dir, nil
}

// debian fetches Debian's kernels. Its apt has sources and lists of its own: the host's
// are not touched.
func debian(ctx context.Context, only string) ([]kernel, error) {
	dir, err := cacheFolder()
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("Dir::Etc::sourcelist \"%[1]s/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n"+
		"Dir::State::lists \"%[1]s/lists\";\nDir::Cache \"%[1]s\";\nAcquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n", dir)
	for name, text := range map[string]string{"apt.conf": conf, "sources.list": sources} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("write apt settings: %w", err)
		}
	}
	_, updateErr := apt(ctx, dir, "apt-get", "update", "-qq")
	show, err := apt(ctx, dir, "apt-cache", "show", "linux-image-amd64")
	if err != nil {
		return nil, fmt.Errorf("list Debian's kernels: %w", err)
	}
	var out []kernel
	for _, r := range releases {
		if !strings.HasPrefix(r.version, only) && !strings.HasPrefix(only, r.version) {
			continue
		}
		k := kernel{name: strings.TrimSuffix(r.version, ".") + " (" + r.what + ")"}
		version := newest(show, r.version)
		if version == "" {
			k.absent = fmt.Errorf("not in Debian's suites (apt-get update: %v)", updateErr)
		} else if err := k.fetch(ctx, dir, version); err != nil {
			k.absent = err
		}
		out = append(out, k)
	}
	return out, nil
}

func apt(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = filepath.Join(dir, "deb")
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(dir, "apt.conf"))
	out, err := cmd.Output()
	return string(out), err
}

var dependency = regexp.MustCompile(`linux-image-([0-9][^ ,]*-amd64|[0-9][^ ,]*\+deb[0-9]+-amd64)`)

// newest finds the newest kernel of a version in what apt-cache shows of the
// meta-package; the version is the part of the package's name.
func newest(show, version string) string {
	var found []string
	for _, m := range dependency.FindAllStringSubmatch(show, -1) {
		if strings.HasPrefix(m[1], version) {
			found = append(found, m[1])
		}
	}
	sort.Slice(found, func(i, j int) bool {
		return len(found[i]) < len(found[j]) || (len(found[i]) == len(found[j]) && found[i] < found[j])
	})
	if len(found) == 0 {
		return ""
	}
	return found[len(found)-1]
}

// fetch downloads and unpacks a kernel. Since Linux 7 it comes in three
// packages: image, modules, configuration.
func (k *kernel) fetch(ctx context.Context, dir, version string) error {
	root := filepath.Join(dir, version)
	if _, err := os.Stat(root); err != nil {
		part := root + ".part"
		if err := os.RemoveAll(part); err != nil {
			return fmt.Errorf("clean cache: %w", err)
		}
		packages := []string{"linux-image-" + version}
		if strings.HasPrefix(version, "7.") {
			packages = []string{"linux-binary-" + version, "linux-modules-" + version, "linux-base-" + version}
		}
		for _, p := range packages {
			if _, err := apt(ctx, dir, "apt-get", "download", "-qq", p); err != nil {
				return fmt.Errorf("download %s: %w", p, err)
			}
			files, _ := filepath.Glob(filepath.Join(dir, "deb", p+"_*.deb"))
			if len(files) == 0 {
				return fmt.Errorf("download %s: no file", p)
			}
			if err := exec.CommandContext(ctx, "dpkg", "-x", files[len(files)-1], part).Run(); err != nil {
				return fmt.Errorf("unpack %s: %w", p, err)
			}
			for _, f := range files {
				_ = os.Remove(f) // the unpacked copy is what counts
			}
		}
		if err := os.Rename(part, root); err != nil {
			return fmt.Errorf("keep kernel: %w", err)
		}
	}
	return k.find(root, version)
}

func (k *kernel) find(root, version string) error {
	for _, lib := range []string{"lib", "usr/lib"} {
		if dir := filepath.Join(root, lib, "modules", version); exists(dir) {
			k.modules = dir
		}
	}
	for _, image := range []string{filepath.Join(root, "boot/vmlinuz-"+version), filepath.Join(k.modules, "vmlinuz")} {
		if exists(image) {
			k.image = image
			break
		}
	}
	if k.image == "" || k.modules == "" {
		return fmt.Errorf("no kernel in %s", root)
	}
	if !exists(filepath.Join(k.modules, "modules.dep")) {
		if out, err := exec.Command("depmod", "-b", strings.TrimSuffix(strings.TrimSuffix(k.modules, "/lib/modules/"+version), "/"), version).CombinedOutput(); err != nil {
			return fmt.Errorf("run depmod: %w: %s", err, out)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
