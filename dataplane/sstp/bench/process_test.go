package bench

import (
	"bytes"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary runs itself again in other roles: what is measured is one process, and
// the ends are others. Each is a server of net/rpc on its standard input and output, and
// ends with them.
const roleEnv = "VPNLB_BENCH_ROLE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	var receiver any
	var err error
	switch role {
	case "Origin":
		receiver, err = newOrigin()
	case "Load":
		receiver = new(Load)
	case "Relay":
		receiver = new(Relay)
	default:
		err = fmt.Errorf("%s=%s: no such role", roleEnv, role)
	}
	s := rpc.NewServer()
	if err == nil {
		err = s.RegisterName(role, receiver)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.ServeConn(stdio{os.Stdin, os.Stdout})
	os.Exit(0)
}

type stdio struct {
	io.Reader
	io.WriteCloser
}

// process is a child; client is nil where it is HAProxy.
type process struct {
	pid    int
	role   string
	client *rpc.Client
	stop   func() // and wait; called at the end of the test, at the latest
}

// startRole starts the test binary in a role, until the test ends.
func startRole(t testing.TB, role string, env ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), append(env, roleEnv+"="+role)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	return startCommand(t, role, cmd, rpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{out, in}))
}

// startCommand starts a child, until the test ends. What it says is shown where the test
// fails.
func startCommand(t testing.TB, role string, cmd *exec.Cmd, client *rpc.Client) *process {
	t.Helper()
	said, err := os.Create(filepath.Join(t.TempDir(), role+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		if client != nil {
			client.Close() // ends its input
		} else if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Errorf("stop %s: %v", role, err)
		}
		kill := time.AfterFunc(10*time.Second, func() {
			t.Errorf("%s does not stop", role)
			cmd.Process.Kill()
		})
		_ = cmd.Wait() // its exit code after a signal says nothing
		kill.Stop()
		said.Close()
		if text, err := os.ReadFile(said.Name()); t.Failed() && err == nil && len(text) != 0 {
			t.Logf("%s said:\n%s", role, bytes.TrimSpace(text[max(0, len(text)-4096):]))
		}
	})
	t.Cleanup(stop)
	return &process{pid: cmd.Process.Pid, role: role, client: client, stop: stop}
}

// call calls a method of the child.
func (p *process) call(t testing.TB, method string, args, reply any) {
	t.Helper()
	if args == nil {
		args = struct{}{}
	}
	if reply == nil {
		reply = new(struct{})
	}
	if err := p.client.Call(p.role+"."+method, args, reply); err != nil {
		t.Fatalf("%s.%s: %v", p.role, method, err)
	}
}

// cpu is what the process used so far, all its threads, user and kernel (the sum that
// /proc/PID/stat rounds to ticks). Neither proxy has children.
func (p *process) cpu(t testing.TB) time.Duration {
	t.Helper()
	const processClock = 2 // CPUCLOCK_SCHED, of the whole process: clock_getcpuclockid(3)
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^p.pid<<3|processClock), &ts); err != nil {
		t.Fatalf("read CPU time of %s: %v", p.role, err)
	}
	return time.Duration(ts.Nano())
}

// rss is the memory that the process has resident, in bytes.
func (p *process) rss(t testing.TB) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := bytes.Cut(text, []byte("\nVmRSS:"))
	fields := bytes.Fields(after)
	if !ok || len(fields) < 2 || string(fields[1]) != "kB" {
		t.Fatalf("VmRSS of %s is not as expected:\n%s", p.role, text)
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// files is how many descriptors the process has open.
func (p *process) files(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// settle polls until the memory of each has been the same for some seconds, more or less.
// One that never comes to rest is taken as it is when the bound is over.
func settle(t testing.TB, all []*proxy) {
	t.Helper()
	const within, still, bound = 500, 5, 30 // 1/500 for so many seconds
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	was := make([]int64, len(all))
	for seconds, calm := 0, 0; calm < still && seconds < bound; seconds++ {
		<-tick.C
		calm++
		for i, p := range all {
			if is := p.rss(t); max(is, was[i])-min(is, was[i]) > was[i]/within {
				calm, was[i] = 0, is
			}
		}
	}
}

// until polls a condition.
func until(t testing.TB, what string, bound time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, bound)
		case <-tick.C:
		}
	}
}
