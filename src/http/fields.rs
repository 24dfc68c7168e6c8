//! Field names that mean something to a gateway, found by length first and then by bytes, and the
//! rules that are the same for requests and responses: hop-by-hop fields (RFC 9110 section 7.6.1),
//! `Content-Length` (section 8.6) and `Transfer-Encoding` (RFC 9112 section 6.1).
//!
//! Must not know: whether a request or a response is read.

/// How many fields a head may have at most, whatever the configuration says.
pub const MAX_FIELDS: usize = 256;

/// Connection options that are looked at; a head with more is refused, so that matching options against
/// fields stays cheap.
const MAX_CONNECTION_OPTIONS: usize = 64;

/// A field as far as the gateway cares for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Field {
    /// End to end, passed on unchanged.
    Other,
    /// Hop-by-hop by name, or named by `Connection`: never passed on.
    Dropped,
    /// `Connection`
    Connection,
    /// `Content-Length`
    ContentLength,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `Host`
    Host,
    /// `TE`
    Te,
    /// `Trailer`
    Trailer,
    /// `Upgrade`
    Upgrade,
    /// `Expect`
    Expect,
    /// `Date`
    Date,
    /// `Via`
    Via,
    /// `X-Request-Id`
    RequestId,
    /// `Forwarded`, `X-Real-IP` and every `X-Forwarded-*`, also when spelled with `_`.
    Forwarding,
    /// `Proxy-Status`: end to end although its name begins with `Proxy-` (RFC 9209).
    ProxyStatus,
    /// `Content-Type`
    ContentType,
    /// `Max-Forwards`
    MaxForwards,
}

impl Field {
    /// Which field `name` is, in any case.
    pub fn of(name: &str) -> Field {
        let name = name.as_bytes();
        // Length and first byte leave at most one or two candidates for a comparison.
        match (name.len(), name.first().map_or(0, |byte| byte | 0x20)) {
            (2, b't') if is(name, b"te") => Field::Te,
            (3, b'v') if is(name, b"via") => Field::Via,
            (4, b'h') if is(name, b"host") => Field::Host,
            (4, b'd') if is(name, b"date") => Field::Date,
            (5, b'c') if is(name, b"close") => Field::Dropped,
            (6, b'e') if is(name, b"expect") => Field::Expect,
            (7, b't') if is(name, b"trailer") => Field::Trailer,
            (7, b'u') if is(name, b"upgrade") => Field::Upgrade,
            (9, b'f') if is(name, b"forwarded") => Field::Forwarding,
            (9, b'x') if is_folded(name, b"x-real-ip") => Field::Forwarding,
            (10, b'c') if is(name, b"connection") => Field::Connection,
            (10, b'k') if is(name, b"keep-alive") => Field::Dropped,
            (12, b'c') if is(name, b"content-type") => Field::ContentType,
            (12, b'm') if is(name, b"max-forwards") => Field::MaxForwards,
            (12, b'x') if is(name, b"x-request-id") => Field::RequestId,
            (14, b'c') if is(name, b"content-length") => Field::ContentLength,
            (14, b'h') if is(name, b"http2-settings") => Field::Dropped,
            (17, b't') if is(name, b"transfer-encoding") => Field::TransferEncoding,
            (12, b'p') if is(name, b"proxy-status") => Field::ProxyStatus,
            (6.., b'p') if name[..6].eq_ignore_ascii_case(b"proxy-") => Field::Dropped,
            (12.., b'x') if is_folded(&name[..12], b"x-forwarded-") => Field::Forwarding,
            _ => Field::Other,
        }
    }

    /// Whether a connection option may take this field away: not what the gateway sets or needs itself.
    fn can_be_named_away(self) -> bool {
        matches!(
            self,
            Field::Other
                | Field::Dropped
                | Field::Te
                | Field::Trailer
                | Field::ContentType
                | Field::MaxForwards
                | Field::ProxyStatus
                | Field::RequestId
        )
    }
}

/// Equal but for case; `known` is in lower case. Of a length that the compiler knows, and without a branch for each
/// byte, so that it becomes a few vector instructions.
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let differs = name.iter().zip(known).fold(0, |differs, (a, b)| differs | (a.to_ascii_lowercase() ^ b));
    differs == 0
}

/// Equal but for case, with `_` for `-`: some servers fold the two when they make variables of fields.
fn is_folded(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len()
        && name.iter().zip(known).all(|(a, b)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-'))
}

/// What a `Connection` field said, added up over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// `close` was among the options.
    pub close: bool,
    /// `keep-alive` was among the options.
    pub keep_alive: bool,
    /// `upgrade` was among the options.
    pub upgrade: bool,
    /// Other options came: fields to be taken away.
    others: bool,
}

impl Connection {
    /// Whether it names fields that are not to be passed on, trailers among them.
    pub fn names_fields(&self) -> bool {
        self.others
    }

    /// Adds one field value; the error says what is wrong.
    pub fn add(&mut self, value: &[u8]) -> Result<(), &'static str> {
        for option in list(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if option.eq_ignore_ascii_case(b"te") {
                // It announces `TE`, which has its own rule.
            } else if is_token(option) {
                self.others = true;
            } else {
                return Err("a connection option is not a token");
            }
        }
        Ok(())
    }
}

/// Marks the fields that `Connection` names as dropped.
pub fn drop_named(
    connection: Connection,
    fields: &[httparse::Header<'_>],
    kinds: &mut [Field],
) -> Result<(), &'static str> {
    if !connection.others {
        return Ok(());
    }
    let mut options = 0;
    for at in 0..fields.len() {
        if kinds[at] != Field::Connection {
            continue;
        }
        for option in list(fields[at].value) {
            options += 1;
            if options > MAX_CONNECTION_OPTIONS {
                return Err("too many connection options");
            }
            for (field, kind) in fields.iter().zip(kinds.iter_mut()) {
                if kind.can_be_named_away() && field.name.as_bytes().eq_ignore_ascii_case(option) {
                    *kind = Field::Dropped;
                }
            }
        }
    }
    Ok(())
}

/// The members of a comma-separated list without the empty ones (RFC 9110 section 5.6.1).
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(|member| member.trim_ascii()).filter(|member| !member.is_empty())
}

/// Whether `bytes` is a token (RFC 9110 section 5.6.2).
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// Whether a field is likely to carry a secret, which a `TRACE` must not show (RFC 9110 section 9.3.8).
pub fn is_secret(name: &str) -> bool {
    const SECRETS: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "cookie2", "x-api-key"];
    SECRETS.iter().any(|secret| name.eq_ignore_ascii_case(secret))
}

/// A `Content-Length`: digits only, no list, no sign, below 2^63.
pub fn content_length(value: &[u8]) -> Result<u64, &'static str> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err("the Content-Length is not a plain decimal number");
    }
    let length = value.iter().fold(0u64, |length, digit| length * 10 + u64::from(digit - b'0'));
    if length > i64::MAX as u64 {
        return Err("the Content-Length is too large");
    }
    Ok(length)
}

/// The one spelling of a valid length: without leading noughts, which some would take for octal.
pub fn plain_length(value: &[u8]) -> &[u8] {
    let noughts = value.iter().take_while(|digit| **digit == b'0').count();
    &value[noughts.min(value.len().saturating_sub(1))..]
}

/// A `Transfer-Encoding`: `chunked` alone is all that this gateway can delimit.
pub fn transfer_encoding(value: &[u8]) -> Result<(), &'static str> {
    if value.eq_ignore_ascii_case(b"chunked") { Ok(()) } else { Err("the Transfer-Encoding is not chunked alone") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(Field::of("HOST"), Field::Host);
        assert_eq!(Field::of("content-LENGTH"), Field::ContentLength);
        assert_eq!(Field::of("X-Forwarded-Anything"), Field::Forwarding);
        assert_eq!(Field::of("x_forwarded_for"), Field::Forwarding);
        assert_eq!(Field::of("X_Real-IP"), Field::Forwarding);
        assert_eq!(Field::of("Proxy-Connection"), Field::Dropped);
        assert_eq!(Field::of("Proxy-Status"), Field::ProxyStatus);
        assert_eq!(Field::of("X-Forwardee"), Field::Other);
        assert_eq!(Field::of(""), Field::Other);
    }

    #[test]
    fn lengths_are_plain_numbers() {
        assert_eq!(content_length(b"0"), Ok(0));
        assert_eq!(content_length(b"9223372036854775807"), Ok(i64::MAX as u64));
        for bad in ["", "+1", "-1", "0x10", "1,1", "1 1", "9223372036854775808", "99999999999999999999"] {
            assert!(content_length(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn connection_cannot_take_away_what_the_gateway_needs() {
        let fields = [
            httparse::Header { name: "Connection", value: b"host, x-private, content-length, via" },
            httparse::Header { name: "Host", value: b"a" },
            httparse::Header { name: "X-Private", value: b"b" },
            httparse::Header { name: "Content-Length", value: b"1" },
            httparse::Header { name: "Via", value: b"1.1 other" },
        ];
        let mut kinds = fields.map(|field| Field::of(field.name));
        let mut connection = Connection::default();
        connection.add(fields[0].value).unwrap();
        drop_named(connection, &fields, &mut kinds).unwrap();
        assert_eq!(kinds, [Field::Connection, Field::Host, Field::Dropped, Field::ContentLength, Field::Via]);
    }
}
