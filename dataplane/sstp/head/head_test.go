package head

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

const length = "Content-Length: 18446744073709551615\r\n"

func request(line string, fields ...string) string {
	return line + "\r\n" + strings.Join(fields, "") + "\r\n"
}

const line = "SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1"

func TestRequestTaken(t *testing.T) {
	for _, c := range []struct {
		name, head string
		want       Request
	}{
		{"as printed in the specification", request(line, length, "Host: vpn.example.test\r\n", "SSTPCORRELATIONID: {2CF6A4C9-7C5B-4A54-9C1A-0C6E7E3D6F11}\r\n"),
			Request{Host: "vpn.example.test", CorrelationID: "{2CF6A4C9-7C5B-4A54-9C1A-0C6E7E3D6F11}", HasCorrelation: true}},
		{"sstpc's malformed correlation ID", request(line, "SSTPCORRELATIONID: {7BFABA44-D234-AC43-46B61CA2}\r\n", length, "Host: 203.0.113.10:443\r\n"),
			Request{Host: "203.0.113.10:443", CorrelationID: "{7BFABA44-D234-AC43-46B61CA2}", HasCorrelation: true}},
		{"GUID in lower case, encoded braces, query, cookie",
			request("SSTP_DUPLEX_POST /sra_%7bba195980-cd49-458b-9e23-c84ee0adcd75%7D/?tenantid=a%20b?c HTTP/1.1", "host:[2001:db8::1]\r\n", length, "cookie:  a=1; b=\"2\" \r\n"),
			Request{Query: "?tenantid=a%20b?c", Host: "[2001:db8::1]", Cookie: `a=1; b="2"`, HasCookie: true}},
		{"fields without use, even twice", request(line, length, "Host: h\r\n", "X-A: \xe4\r\n", "X-A: 2\r\n", "User-Agent:\r\n"), Request{Host: "h"}},
		{"empty correlation ID and query", request(strings.Replace(line, " HTTP", "? HTTP", 1), length, "Host: h\r\n", "SSTPCorrelationID:\r\n"),
			Request{Query: "?", Host: "h", HasCorrelation: true}},
	} {
		got, err := ParseRequest([]byte(c.head))
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

func TestRequestRefused(t *testing.T) {
	good := []string{length, "Host: h\r\n"}
	with := func(more ...string) string { return request(line, append(more, good...)...) }
	changed := func(old, new string) string { return strings.Replace(request(line, good...), old, new, 1) }
	many := strings.Repeat("X: y\r\n", MaxFields-1)
	for _, c := range []struct {
		name, head string
		want       Reason
	}{
		{"monitor", changed("SSTP_DUPLEX_POST", "HEAD"), Monitor},
		{"browser", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", BadMethod},
		{"method in lower case", changed("SSTP_DUPLEX_POST", "sstp_duplex_post"), BadMethod},
		{"monitor of another path", "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", BadMethod},
		{"another path", changed("/sra_{BA", "/sra_{BB"), BadPath},
		{"prefix of the path", changed("}/ ", "} "), BadPath},
		{"more path", changed("}/ ", "}/x "), BadPath},
		{"absolute form", changed(" /sra_", " https://h/sra_"), BadPath},
		{"path of the Kelvin sign", changed("{BA", "{B\u212a"), BadPath},
		{"control byte in the query", changed("}/ ", "}/?a\x01 "), BadQuery},
		{"byte above ASCII in the query", changed("}/ ", "}/?\xe4 "), BadQuery},
		{"HTTP/1.0", changed("HTTP/1.1", "HTTP/1.0"), BadVersion},
		{"two blanks", changed(" HTTP/1.1", "  HTTP/1.1"), BadVersion},
		{"no version", changed(" HTTP/1.1", ""), BadLine},
		{"line before", "\r\n" + request(line, good...), BadLine},
		{"bare LF", strings.Replace(with("A: b\r\n"), "b\r\n", "b\n", 1), BadLineEnding},
		{"bare CR", with("A: b\rc\r\n"), BadLineEnding},
		{"folded", with("A: b\r\n", " c\r\n"), Folded},
		{"folded at once", with("\tc\r\n"), Folded},
		{"blank before the colon", with("A : b\r\n"), BadName},
		{"no colon", with("A\r\n"), BadName},
		{"no name", with(": b\r\n"), BadName},
		{"NUL", with("A: \x00\r\n"), BadValue},
		{"length twice", with(length), Duplicate},
		{"host twice", with("hOST: h\r\n"), Duplicate},
		{"cookie twice", with("Cookie: a\r\n", "Cookie: b\r\n"), Duplicate},
		{"correlation twice", with("sstpcorrelationid: a\r\n", "SSTPCORRELATIONID: a\r\n"), Duplicate},
		{"chunked", with("Transfer-Encoding: chunked\r\n"), TransferEncoding},
		{"no length", request(line, "Host: h\r\n"), BadLength},
		{"length of another size", changed("551615", "551614"), BadLength},
		{"length with a plus", changed("18446744073709551615", "+18446744073709551615"), BadLength},
		{"length listed", changed("18446744073709551615", "18446744073709551615, 18446744073709551615"), BadLength},
		{"no host", request(line, length), BadHost},
		{"empty host", request(line, length, "Host:\r\n"), BadHost},
		{"host with a path", request(line, length, "Host: h/x\r\n"), BadHost},
		{"host too long", request(line, length, "Host: "+strings.Repeat("h", maxHost+1)+"\r\n"), BadHost},
		{"long query", changed("}/ ", "}/?"+strings.Repeat("a", maxQuery)+" "), BadQuery},
		{"long cookie", with("Cookie: " + strings.Repeat("a", maxCookie+1) + "\r\n"), BadCookie},
		{"tab in the cookie", with("Cookie: a\tb\r\n"), BadCookie},
		{"long correlation ID", with("SSTPCORRELATIONID: " + strings.Repeat("a", maxCorrelation+1) + "\r\n"), BadCorrelation},
		{"correlation ID above ASCII", with("SSTPCORRELATIONID: \xe4\r\n"), BadCorrelation},
		{"65 fields", with(many), TooManyFields},
		{"too large", with("A: " + strings.Repeat("b", MaxBytes) + "\r\n"), TooLarge},
		{"incomplete", strings.TrimSuffix(with(), "\r\n"), Incomplete},
		{"two requests", with() + with(), BadLine},
		{"empty", "", Incomplete},
	} {
		if got, err := ParseRequest([]byte(c.head)); !errors.Is(err, c.want) || got != (Request{}) {
			t.Errorf("%s: %+v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

func TestResponse(t *testing.T) {
	head := func(line string, fields ...string) string { return request(line, fields...) }
	for _, c := range []struct {
		name, head string
		want       Response
		err        error
	}{
		{"as printed in the specification", head("HTTP/1.1 200 ", length, "Server: Microsoft-HTTPAPI/2.0\r\n", "Date: Thu, 09 Nov 2006 00:51:09 GMT\r\n"),
			Response{200, "Microsoft-HTTPAPI/2.0", "Thu, 09 Nov 2006 00:51:09 GMT"}, nil},
		{"phrase", head("HTTP/1.1 200 OK then", length), Response{Status: 200}, nil},
		{"no blank behind the status", head("HTTP/1.1 200", length), Response{Status: 200}, nil},
		{"ports exhausted", head("HTTP/1.1 503 Service Unavailable", "Transfer-Encoding: chunked\r\n"), Response{Status: 503}, nil},
		{"server's name is no text", head("HTTP/1.1 401 ", "Server: \xe4\r\n"), Response{Status: 401}, nil},
		{"200 with an end", head("HTTP/1.1 200 OK", "Content-Length: 5\r\n"), Response{}, BadLength},
		{"200 without length", head("HTTP/1.1 200 OK"), Response{}, BadLength},
		{"200 chunked", head("HTTP/1.1 200 OK", length, "Transfer-Encoding: chunked\r\n"), Response{}, TransferEncoding},
		{"continue", head("HTTP/1.1 100 Continue"), Response{}, Interim},
		{"old", head("HTTP/1.0 200 OK", length), Response{}, BadVersion},
		{"four digits", head("HTTP/1.1 2000 OK", length), Response{}, BadStatus},
		{"no digits", head("HTTP/1.1 2x0 OK", length), Response{}, BadStatus},
		{"status 999", head("HTTP/1.1 999 ", length), Response{}, BadStatus},
		{"control byte in the phrase", head("HTTP/1.1 200 \x01", length), Response{}, BadLine},
		{"length twice", head("HTTP/1.1 200 ", length, length), Response{}, Duplicate},
		{"not HTTP", "SSH-2.0-x\r\n\r\n", Response{}, BadVersion},
	} {
		got, err := ParseResponse([]byte(c.head))
		if err != c.err || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v, %v", c.name, got, err, c.want, c.err)
		}
	}
}

func TestEnd(t *testing.T) {
	b := []byte("a\r\n\r\nrest")
	for seen := range len(b) + 2 {
		want := 5
		if seen > 4 { // the whole of the empty line was searched before
			want = -1
		}
		if got := End(b, seen); got != want {
			t.Errorf("End(%d) = %d, want %d", seen, got, want)
		}
	}
}

func TestReasonsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Reasons() {
		if name := r.String(); name == "" || seen[name] {
			t.Errorf("reason %d: name %q", uint8(r), name)
		} else {
			seen[name] = true
		}
	}
	if got := fmt.Sprint(Reason(0), Reason(200)); got != "http head refused: unknown http head refused: unknown" {
		t.Error(got)
	}
}

// What is taken is what is written, and what is written is taken as the same.
// fuzz-all: 400000x
func FuzzRequestHead(f *testing.F) {
	f.Add([]byte(request(line, length, "Host: vpn.example.test\r\n", "SSTPCORRELATIONID: {7BFABA44-D234-AC43-46B61CA2}\r\n")))
	f.Add([]byte(request("SSTP_DUPLEX_POST /sra_%7bba195980-cd49-458b-9e23-c84ee0adcd75%7D/?a=b HTTP/1.1", "Host:[2001:db8::1]\r\n", length, "Cookie: a=1; b=\xe4\r\n")))
	f.Add([]byte("HEAD /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\nHost: h\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRequest(b)
		if err != nil {
			if reason, ok := err.(Reason); !ok || reason == 0 || reason >= reasons {
				t.Fatalf("error %v is no reason", err)
			}
			return
		}
		checkSmuggling(t, b)
		canonical := r.Append(nil)
		again, err := ParseRequest(canonical)
		if err != nil || again != r {
			t.Fatalf("written as %q, which reads as %+v, %v instead of %+v", canonical, again, err, r)
		}
		if string(again.Append(nil)) != string(canonical) {
			t.Fatal("the canonical form is not stable")
		}
	})
}

// fuzz-all: 400000x
func FuzzResponseHead(f *testing.F) {
	f.Add([]byte(request("HTTP/1.1 200 ", length, "Server: Microsoft-HTTPAPI/2.0\r\n")))
	f.Add([]byte(request("HTTP/1.1 503 x", "Content-Length: 0\r\n", "Date: now\r\n")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseResponse(b)
		if err != nil {
			if reason, ok := err.(Reason); !ok || reason == 0 || reason >= reasons {
				t.Fatalf("error %v is no reason", err)
			}
			return
		}
		canonical := r.Append(nil)
		again, err := ParseResponse(canonical)
		if err != nil || again != r {
			t.Fatalf("written as %q, which reads as %+v, %v instead of %+v", canonical, again, err, r)
		}
	})
}

// checkSmuggling looks at a head that was taken with the eyes of a lenient
// parser, which ends lines at LF and trims names: it must not see another frame.
func checkSmuggling(t *testing.T, b []byte) {
	t.Helper()
	lengths := 0
	all := strings.Split(string(b), "\n")
	for _, l := range all[1:] {
		name, value, _ := strings.Cut(l, ":")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "transfer-encoding":
			t.Fatal("taken with Transfer-Encoding")
		case "content-length":
			if lengths++; strings.TrimSpace(value) != Endless {
				t.Fatalf("taken with length %q", value)
			}
		}
	}
	if lengths != 1 {
		t.Fatalf("taken with %d lengths", lengths)
	}
}
