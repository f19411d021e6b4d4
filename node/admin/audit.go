package admin

import (
	"log/slog"
)

// What the log of changes shows of requests: what was set, never an address in
// memory, a secret or a client.

// set adds what was given; a missing value says nothing.
func set[T any](attrs []slog.Attr, key string, v *T) []slog.Attr {
	if v == nil {
		return attrs
	}
	return append(attrs, slog.Any(key, *v))
}

// LogValue shows what was set.
func (r VIPRequest) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("name", r.Name), slog.String("addr", r.Addr)}
	if r.SSTP != "" {
		attrs = append(attrs, slog.String("sstp", r.SSTP))
	}
	attrs = set(attrs, "client_bits", r.Bits)
	attrs = set(attrs, "sstp_certs", r.Certificates)
	attrs = set(attrs, "sstp_transparent", r.Transparent)
	if r.Readdress {
		attrs = append(attrs, slog.Bool("readdress", true))
	}
	return slog.GroupValue(attrs...)
}

// LogValue shows what was set.
func (r BackendRequest) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("name", r.Name), slog.String("addr", r.Addr)}
	for _, a := range []slog.Attr{slog.String("vip", r.VIP), slog.String("mode", r.Mode)} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	attrs = set(attrs, "weight", r.Weight)
	attrs = set(attrs, "limit", r.Limit)
	attrs = set(attrs, "sstp_port", r.SSTPPort)
	return slog.GroupValue(attrs...)
}

// LogValue leaves the client out: their addresses are logged at debug level only.
func (ForgetRequest) LogValue() slog.Value { return slog.StringValue("one client's records") }

// auditError is what the log of changes shows of an error.
func auditError(in any, err error) string {
	if _, personal := in.(ForgetRequest); personal {
		return "refused" // the words name the client
	}
	return err.Error()
}
