package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// needed are the modules that the tests use, by name; what they depend on is read
// from modules.dep. libcrc32c wants the first, which modules.dep does not say. What a kernel has built in is not there and not missed.
var needed = []string{"crc32c_generic", "veth", "8021q", "bonding", "dummy", "bridge", "macvlan", "tun", "tls", "nf_tables",
	"nft_chain_nat", "nft_ct", "nft_numgen", "nft_limit", "nft_reject_inet", "nft_fib_inet", "ipv6"}

// modules gives the files to load, each after those that it depends on.
func modules(dir string) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	defer f.Close()
	file, depends := map[string]string{}, map[string][]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		at, deps, _ := strings.Cut(s.Text(), ":")
		name, _, _ := strings.Cut(filepath.Base(at), ".")
		file[strings.ReplaceAll(name, "-", "_")] = at
		depends[at] = strings.Fields(deps)
	}
	var out []string
	have := map[string]bool{}
	var add func(at string)
	add = func(at string) {
		if have[at] {
			return
		}
		have[at] = true
		for _, d := range depends[at] {
			add(d)
		}
		out = append(out, at)
	}
	for _, name := range needed {
		if at := file[name]; at != "" {
			add(at)
		}
	}
	return out, nil
}

const initScript = `#!/bin/sh
export HOME=/tmp PATH=/bin TMPDIR=/tmp CI=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mkdir -p /run/netns /dev/net
mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cgroup /sys/fs/cgroup
for m in $(cat /modules); do insmod $m || echo "insmod $m failed"; done
ip link set lo up
echo "kernel $(uname -r)"
`

// initrd writes the machine's file system: busybox, modules, test binaries and what
// lies in their testdata folders.
func initrd(k kernel, work string, binaries []string, list []suite) (string, error) {
	root := filepath.Join(work, "root")
	if err := os.RemoveAll(root); err != nil {
		return "", fmt.Errorf("clean machine: %w", err)
	}
	for _, d := range []string{"bin", "proc", "sys", "dev", "run", "tmp", "etc", "var", "mod"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", fmt.Errorf("make machine: %w", err)
		}
	}
	mods, err := modules(k.modules)
	if err != nil {
		return "", err
	}
	script, order := initScript, ""
	copies := [][2]string{{"/bin/busybox", "bin/busybox"}}
	for i, m := range mods {
		to := fmt.Sprintf("mod/%03d-%s", i, filepath.Base(m))
		copies = append(copies, [2]string{filepath.Join(k.modules, m), to})
		order += "/" + strings.TrimSuffix(strings.TrimSuffix(to, ".xz"), ".zst") + "\n"
	}
	release := filepath.Base(k.modules)
	for _, config := range []string{filepath.Join(filepath.Dir(k.image), "config-"+release), filepath.Join(k.modules, "config")} {
		if exists(config) { // programs that ask for CONFIG_HZ read it
			copies = append(copies, [2]string{config, "boot/config-" + release})
			break
		}
	}
	for i, s := range list {
		copies = append(copies, [2]string{binaries[i], fmt.Sprintf("suite%d.test", i)})
		script += fmt.Sprintf("cd /src/%s && /suite%d.test -test.v -test.timeout 20m -test.run '%s'; echo \"SUITE %s $?\"\n", s.pkg, i, s.run, s.pkg)
	}
	script += "echo MACHINE DONE\npoweroff -f\n"
	for _, c := range copies {
		if err := copyFile(c[0], filepath.Join(root, c[1])); err != nil {
			return "", err
		}
	}
	if err := testdata(root, list); err != nil {
		return "", err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(root, "init"), []byte(script), 0o755),
		os.WriteFile(filepath.Join(root, "modules"), []byte(order), 0o644)); err != nil {
		return "", fmt.Errorf("write init: %w", err)
	}
	return pack(root, filepath.Join(work, "initrd.gz"))
}

// testdata copies every testdata folder of a suite's package and of those below it.
func testdata(root string, list []suite) error {
	for _, s := range list {
		if err := os.MkdirAll(filepath.Join(root, "src", s.pkg), 0o755); err != nil {
			return fmt.Errorf("make machine: %w", err)
		}
		err := filepath.WalkDir(s.pkg, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.Contains(path, "/testdata/") {
				return err
			}
			return copyFile(path, filepath.Join(root, "src", path))
		})
		if err != nil {
			return fmt.Errorf("copy testdata: %w", err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy into machine: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("copy into machine: %w", err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		return fmt.Errorf("copy into machine: %w", err)
	}
	return nil
}

// pack unpacks compressed modules, links busybox's commands, and makes the archive.
func pack(root, to string) (string, error) {
	cmd := exec.Command("/bin/sh", "-ec", `for a in sh mount insmod ip mkdir poweroff cat uname; do ln -sf busybox bin/$a; done
ln -s ../run var/run
find mod -name '*.xz' -exec xz -d {} +
find mod -name '*.zst' -exec zstd -q -d --rm {} +
find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 >"$0"`, to)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("pack machine: %w: %s", err, out)
	}
	return to, nil
}

var (
	suiteLine  = regexp.MustCompile(`SUITE (\S+) (\d+)`)
	verifyLine = regexp.MustCompile(`(\S+): (\d+) instructions verified`)
)

// boot runs the suites in a machine and gives a line of what was measured.
func boot(ctx context.Context, k kernel, work string, binaries []string, list []suite, limit time.Duration) (string, error) {
	ram, err := initrd(k, work, binaries, list)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "pc", "-cpu", "max", "-accel", "tcg,thread=multi", "-smp", "2",
		"-m", "3G", "-nographic", "-no-reboot", "-nic", "none", "-kernel", k.image, "-initrd", ram,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", fmt.Errorf("start machine: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start machine: %w", err)
	}
	said, done, bad := listen(out, k.name)
	err = cmd.Wait()
	switch {
	case len(bad) > 0:
		return said, fmt.Errorf("FAILED: %s", strings.Join(bad, ", "))
	case done < len(list):
		return said, fmt.Errorf("FAILED: the machine ended early, after %d of %d suites: %w", done, len(list), errors.Join(err, ctx.Err()))
	}
	return said, nil
}

// listen copies the console and reads the suites' verdicts from it.
func listen(console io.Reader, name string) (said string, done int, bad []string) {
	var measured []string
	for s := bufio.NewScanner(console); s.Scan(); {
		line := strings.TrimRight(s.Text(), "\r")
		fmt.Printf("%s | %s\n", name, line)
		if m := verifyLine.FindStringSubmatch(line); m != nil {
			measured = append(measured, m[1]+" "+m[2]+" instructions")
		}
		if m := suiteLine.FindStringSubmatch(line); m != nil {
			done++
			if m[2] != "0" {
				bad = append(bad, m[1])
			}
		}
	}
	return strings.Join(measured, ", "), done, bad
}
