package lab

import (
	"fmt"
	"os"
	"testing"
)

// TestMain lets the test binary be its own embedded peers, as vpnlb is.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "lab-peer" {
		if err := PeerMain(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == speakerArg {
		if err := speak(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("the laboratory needs root")
	}
	t.Skip("the laboratory needs root")
}
