package bench

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"runtime"
	"sync"
)

type Relay struct{}

type RelayArgs struct {
	Port   uint16
	Origin string
	PEM    map[string]string
}

type RelayCounts struct {
	Goroutines int
	Faults     uint64
}

func (r *Relay) Start(a RelayArgs, _ *struct{}) error {
	for key, file := range a.PEM {
		cert, err := loadCertificate(file)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", serviceIP[key], a.Port))
		if err != nil {
			return err
		}
		cfg := &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true}
		go func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					log.Fatal(err)
				}
				go func() {
					t := tls.Server(nc, cfg)
					defer t.Close()
					if t.Handshake() != nil {
						return
					}
					b, err := net.Dial("tcp", a.Origin)
					if err != nil {
						return
					}
					defer b.Close()
					go func() { scaffoldRelay(t, b); t.CloseWrite(); nc.(*net.TCPConn).CloseWrite() }()
					scaffoldRelay(b, t)
					b.(*net.TCPConn).CloseWrite()
				}()
			}
		}()
	}
	return nil
}

func (r *Relay) Counts(_ struct{}, c *RelayCounts) error {
	c.Goroutines = runtime.NumGoroutine()
	return nil
}

var scaffoldPool = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}


func scaffoldRelay(dst io.Writer, src io.Reader) {
	var one [512]byte
	for {
		n, err := src.Read(one[:])
		if n > 0 {
			if _, e := dst.Write(one[:n]); e != nil {
				return
			}
		}
		if err != nil {
			return
		}
		if n == len(one) {
			b := scaffoldPool.Get().(*[]byte)
			for {
				n, err = src.Read(*b)
				if n > 0 {
					if _, e := dst.Write((*b)[:n]); e != nil {
						scaffoldPool.Put(b)
						return
					}
				}
				if err != nil || n < 2048 {
					break
				}
			}
			scaffoldPool.Put(b)
			if err != nil {
				return
			}
		}
	}
}
