package dataplane

import (
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Pinned says what Attach found.
type Pinned struct {
	// Found: maps of this cluster were there; they forward on.
	Found bool
	// Index is the log index stored in them, 0 = never rendered.
	Index      uint64
	Generation uint64
	Entries    int
	// TakenOver are the interfaces whose program forwards already, Attached
	// those that got it now.
	TakenOver, Attached []string
}

// InterfaceStatus is the state of one interface.
type InterfaceStatus struct {
	Name      string
	Index     int
	MAC       string
	MTU       int
	Driver    string // veth, virtio_net, ...; empty where the kernel does not say
	Mode      Mode   // Native or Generic: how the program is attached
	ProgramID uint32 // 0 = the program is not attached: Alarm says so
	// Transmit: the kernel says that the device transmits XDP frames.
	Transmit bool
	// Partial: the driver may hand over checksums that are not complete.
	Partial bool
	Alarm   string // empty = well
}

// Status of a Plane.
type Status struct {
	Attached   bool
	Synced     bool   // Resync has run since Attach
	Index      uint64 // log index that the maps hold
	Generation uint64
	Entries    int // affinity records, of both families
	Entries4   int
	Entries6   int
	Capacity   int // of each family
	HZ         int
	HZSource   string // kconfig or measured
	Interfaces []InterfaceStatus
}

// Count is packets and bytes.
type Count struct{ Packets, Bytes uint64 }

// ReturnCount is what a backend sent that only a working service sends.
type ReturnCount struct{ ESP, SK uint64 }

// Counters since the maps were made (they outlive this process).
type Counters struct {
	Reasons [table.ReasonCount]Count
	// Returns counts packets by backend slot: the passive evidence that a
	// server lives.
	Returns [table.MaxSlots + 1]ReturnCount
	// In and Out count the packets forwarded to and from each backend, by slot.
	In, Out [table.MaxSlots + 1]Count
	// Events are incidents that are not a packet's fate.
	Events Events
}

// Events count what happened beside the verdicts.
type Events struct {
	NextHopMiss     uint64 // FIB was asked
	PendingWritten  uint64
	PendingFull     uint64 // evidence that found no room: the client will prove itself again
	PartialRepaired uint64 // UDP checksum written as 0
	AffinityFull    uint64 // entries that Apply could not store
	AnswersWithheld uint64 // ICMP errors of our own beyond the rate
	TablesMended    uint64 // times that the self-check found tables changed by somebody else
	PinsMended      uint64 // pins that somebody removed and that were made again
	TraceLost       uint64 // traced packets that nobody fetched in time
}
