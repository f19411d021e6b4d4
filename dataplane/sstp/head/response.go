package head

import (
	"bytes"
	"strconv"
)

// maxEcho bounds the fields of a server's head that are passed on.
const maxEcho = 256

// Response is a server's head: what of it goes on to the client.
type Response struct {
	Status       int    // 200 to 599; only 200 opens a stream
	Server, Date string // byte for byte; empty: none
}

// ParseResponse reads a complete head, its empty line included. The error is a
// Reason. A 200 must be endless; the body of another status is nobody's concern,
// since the connection ends with it.
func ParseResponse(b []byte) (Response, error) {
	first, fields, err := lines(b)
	if err != nil {
		return Response{}, err
	}
	var r Response
	if r.Status, err = statusLine(first); err != nil {
		return Response{}, err
	}
	var length string
	var hasLength, hasServer, hasDate, encoded bool
	for _, line := range fields {
		f, err := parseField(line)
		if err != nil {
			return Response{}, err
		}
		switch {
		case f.is("content-length"):
			err = only(&length, &hasLength, f.value)
		case f.is("server"):
			err = only(&r.Server, &hasServer, f.value)
		case f.is("date"):
			err = only(&r.Date, &hasDate, f.value)
		case f.is("transfer-encoding"):
			encoded = true
		}
		if err != nil {
			return Response{}, err
		}
	}
	if r.Status == 200 && encoded {
		return Response{}, TransferEncoding
	}
	if r.Status == 200 && length != Endless {
		return Response{}, BadLength
	}
	for _, s := range []*string{&r.Server, &r.Date} { // for people only: not worth a refusal
		if len(*s) > maxEcho || !text(*s) {
			*s = ""
		}
	}
	return r, nil
}

// statusLine takes HTTP/1.1, three digits and a reason phrase that may be empty:
// HTTP.sys sends "HTTP/1.1 200 " ([MS-SSTP] 4.1).
func statusLine(line []byte) (int, error) {
	rest, ok := bytes.CutPrefix(line, []byte("HTTP/1.1 "))
	if !ok {
		return 0, BadVersion
	}
	digits, phrase, _ := bytes.Cut(rest, []byte(" "))
	if len(digits) != 3 {
		return 0, BadStatus
	}
	status := 0
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, BadStatus
		}
		status = status*10 + int(c-'0')
	}
	for _, c := range phrase {
		if c < ' ' && c != '\t' || c == 0x7f {
			return 0, BadLine
		}
	}
	switch {
	case status >= 100 && status < 200:
		return 0, Interim
	case status < 200 || status > 599:
		return 0, BadStatus
	}
	return status, nil
}

// Append writes the head in its one canonical form: a 200 opens the stream, any
// other status ends the connection.
func (r *Response) Append(b []byte) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	if r.Status == 200 {
		b = append(b, " \r\nContent-Length: "+Endless+"\r\n"...)
	} else {
		b = append(b, " \r\nContent-Length: 0\r\nConnection: close\r\n"...)
	}
	if r.Server != "" {
		b = append(append(append(b, "Server: "...), r.Server...), "\r\n"...)
	}
	if r.Date != "" {
		b = append(append(append(b, "Date: "...), r.Date...), "\r\n"...)
	}
	return append(b, "\r\n"...)
}
