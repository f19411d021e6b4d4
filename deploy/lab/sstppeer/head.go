package sstppeer

import (
	"bufio"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// The HTTP of SSTP ([MS-SSTP] 3.2.4.1, 4.1).
const (
	sstpPath    = "/sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/"
	sstpMethod  = "SSTP_DUPLEX_POST"
	sstpLength  = "18446744073709551615" // 2^64-1: no end
	maxHeadLine = 2048                   // bytes
	maxHeadRows = 64
)

// request is the head of a request.
type request struct {
	method, path, query string
	fields              map[string]string // by lower case name; the last of several
}

// readRequest reads a head; bufio's own limit bounds a line.
func readRequest(in *bufio.Reader) (r request, err error) {
	first, err := headLine(in)
	if err != nil {
		return r, err
	}
	words := strings.Split(first, " ")
	if len(words) != 3 || words[2] != "HTTP/1.1" {
		return r, fmt.Errorf("request line %.60q", first)
	}
	r.method = words[0]
	r.path, r.query, _ = strings.Cut(words[1], "?")
	if r.path, err = url.PathUnescape(r.path); err != nil {
		return r, fmt.Errorf("path of %.60q: %w", first, err)
	}
	r.fields = map[string]string{}
	for range maxHeadRows {
		row, err := headLine(in)
		if err != nil {
			return r, err
		}
		if row == "" {
			return r, nil
		}
		name, value, ok := strings.Cut(row, ":")
		if !ok {
			return r, fmt.Errorf("header field %.60q", row)
		}
		r.fields[strings.ToLower(name)] = strings.TrimSpace(value)
	}
	return r, errors.New("too many header fields")
}

func headLine(in *bufio.Reader) (string, error) {
	b, err := in.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	if len(b) > maxHeadLine {
		return "", errors.New("header line too long")
	}
	row, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok {
		return "", errors.New("header line ends without a carriage return")
	}
	return row, nil
}

// answer is what RRAS says to a request, and whether a call begins with it.
func (r request) answer(now time.Time) (head string, call bool) {
	ours := strings.EqualFold(r.path, sstpPath)
	code, length := "404 Not Found", "0"
	switch {
	case ours && r.method == sstpMethod && r.fields["content-length"] == sstpLength:
		code, length, call = "200 ", sstpLength, true
	case ours && r.method == "HEAD": // what health checks ask
		code = "401 Unauthorized"
	}
	return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Length: %s\r\nServer: Microsoft-HTTPAPI/2.0\r\nDate: %s\r\n\r\n",
		code, length, now.UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT")), call
}
