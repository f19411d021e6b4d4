package head

// Reason says why a head is refused; it is an error and a metric's label.
type Reason uint8

const (
	Monitor Reason = iota + 1 // HEAD of the SSTP path: what health monitors ask
	BadMethod
	BadPath
	BadQuery
	BadVersion
	BadLine // no request or status line
	BadLineEnding
	Folded // a field continued on the next line (RFC 9112 5.2)
	BadName
	BadValue
	Duplicate
	TransferEncoding
	BadLength
	BadHost
	BadCookie
	BadCorrelation
	TooManyFields
	TooLarge
	Incomplete // no empty line
	Interim    // a 1xx response
	BadStatus
	reasons
)

var reasonNames = [reasons]string{
	Monitor: "monitor", BadMethod: "method", BadPath: "path", BadQuery: "query", BadVersion: "version", BadLine: "line",
	BadLineEnding: "line_ending", Folded: "folded_field", BadName: "field_name", BadValue: "field_value",
	Duplicate: "duplicate_field", TransferEncoding: "transfer_encoding", BadLength: "content_length", BadHost: "host",
	BadCookie: "cookie", BadCorrelation: "correlation_id", TooManyFields: "too_many_fields", TooLarge: "too_large",
	Incomplete: "incomplete", Interim: "interim_response", BadStatus: "status",
}

// Reasons lists all, so that each has its counter from the start.
func Reasons() []Reason {
	var all []Reason
	for r := Reason(1); r < reasons; r++ {
		all = append(all, r)
	}
	return all
}

func (r Reason) String() string {
	if r == 0 || r >= reasons {
		return "unknown"
	}
	return reasonNames[r]
}

func (r Reason) Error() string { return "http head refused: " + r.String() }
