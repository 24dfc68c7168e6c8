//! The one failure type. Breaker outcome, retry class, answer, `Proxy-Status` token, log words and metric
//! label all come from here, so they cannot disagree.
//!
//! | failure | class | answer | `Proxy-Status` error |
//! |---|---|---|---|
//! | refused, unreachable | connect | 502 | connection_refused |
//! | connect timeout | connect | 504 | connection_timeout |
//! | unsent, closed | unsent, closed | 502 | connection_terminated |
//! | incomplete, malformed, too large head; unasked 101 | invalid | 502 | http_response_incomplete, http_protocol_error, http_response_header_section_size, http_upgrade_failed |
//! | no head in time | timeout | 504 | http_response_timeout |
//! | body short, malformed, idle | cut | ends short | – |
//! | a status that counts | 5xx | passed on | – |
//!
//! Must not know: sockets, how an answer is rendered.

use crate::http::response::Invalid;
use crate::policy::breaker::Outcome;
use crate::policy::class::{Causes, Class};
use crate::shared::metrics::Ending;
use std::fmt;
use std::io;

/// What went wrong with an attempt, through the upstream or on the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The last address refused the connection.
    Refused,
    /// The last address could not be reached.
    Unreachable,
    /// The last address did not answer the connection in time.
    ConnectTimeout,
    /// The connection ended before the request head was wholly written.
    Unsent,
    /// The connection ended before the first response byte.
    Closed,
    /// The connection ended inside the response head.
    Incomplete,
    /// The response head is invalid; how.
    Malformed(&'static str),
    /// The response head is larger than the limits.
    HeadTooLarge,
    /// A 101 that nobody asked for.
    UnaskedUpgrade,
    /// No response head in time.
    ResponseTimeout,
    /// The connection ended inside the body.
    BodyShort,
    /// The framing of the body is invalid; how.
    BodyMalformed(&'static str),
    /// The body stopped coming.
    BodyIdle,
    /// A final response with this status.
    Status(u16),
    /// The gateway had no descriptor or port left for the connection.
    NoSocket,
    /// The exchange took longer than `timeouts.total`.
    Total,
    /// No response head within `retries.per_try_timeout`.
    TryTimeout,
    /// A final response that took so many milliseconds, longer than `circuit_breaker.slow_after`.
    Slow(u32),
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Failure {
        match invalid {
            Invalid::Malformed(how) => Failure::Malformed(how),
            Invalid::TooLarge => Failure::HeadTooLarge,
        }
    }
}

impl Failure {
    /// The failure of a connect that ended with `error`.
    pub fn of_connect(error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            io::ErrorKind::TimedOut => Failure::ConnectTimeout,
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Failure::NoSocket,
            // ENOMEM, ENFILE, EMFILE, ENOSPC (epoll_ctl(2)) and ENOBUFS: our own want, whatever their kind.
            _ if matches!(error.raw_os_error(), Some(12 | 23 | 24 | 28 | 105)) => Failure::NoSocket,
            _ => Failure::Unreachable,
        }
    }

    /// The class, as configuration and metrics name it; `None` when it is the gateway's own.
    pub fn class(self) -> Option<Class> {
        match self {
            Failure::Refused | Failure::Unreachable | Failure::ConnectTimeout => Some(Class::Connect),
            Failure::Unsent => Some(Class::Unsent),
            Failure::Closed => Some(Class::Closed),
            Failure::Incomplete | Failure::Malformed(_) | Failure::HeadTooLarge | Failure::UnaskedUpgrade => {
                Some(Class::Invalid)
            }
            Failure::ResponseTimeout | Failure::Total | Failure::TryTimeout => Some(Class::Timeout),
            Failure::BodyShort | Failure::BodyMalformed(_) | Failure::BodyIdle => Some(Class::Cut),
            Failure::Status(_) => Some(Class::Status),
            Failure::NoSocket | Failure::Slow(_) => None,
        }
    }

    /// How metrics name the end of the attempt.
    pub fn ending(self) -> Ending {
        match (self, self.class()) {
            (_, Some(class)) => Ending::of_class(class),
            (Failure::Slow(_), None) => Ending::SLOW,
            (_, None) => Ending::NO_SOCKET,
        }
    }

    /// What it means to the breaker of an upstream with this `failure_on` and `neutral_on`.
    pub fn outcome(self, failure_on: &Causes, neutral_on: &Causes) -> Outcome {
        match (self, self.class()) {
            (Failure::Status(status), _) if neutral_on.counts_status(status) => Outcome::Neutral,
            (Failure::Status(status), _) if failure_on.counts_status(status) => Outcome::Failure,
            (Failure::Status(_), _) => Outcome::Success,
            (Failure::Slow(_), _) => Outcome::Failure,
            (_, Some(class)) if neutral_on.counts_class(class) => Outcome::Neutral,
            (_, Some(class)) if failure_on.counts_class(class) => Outcome::Failure,
            _ => Outcome::Neutral,
        }
    }

    /// The status of the answer, where there still can be one.
    pub fn status(self) -> u16 {
        match self {
            Failure::ConnectTimeout | Failure::ResponseTimeout | Failure::Total | Failure::TryTimeout => 504,
            Failure::NoSocket => 503,
            // One that is no error cannot be given without the content that it announced.
            Failure::Status(status @ 400..) => status,
            _ => 502,
        }
    }

    /// The error of `Proxy-Status` (RFC 9209 section 2.3).
    pub fn token(self) -> &'static str {
        match self {
            Failure::Refused | Failure::Unreachable => "connection_refused",
            Failure::ConnectTimeout => "connection_timeout",
            Failure::Unsent | Failure::Closed => "connection_terminated",
            Failure::Incomplete | Failure::BodyShort => "http_response_incomplete",
            Failure::Malformed(_) | Failure::BodyMalformed(_) | Failure::Status(_) | Failure::Slow(_) => {
                "http_protocol_error"
            }
            Failure::HeadTooLarge => "http_response_header_section_size",
            Failure::UnaskedUpgrade => "http_upgrade_failed",
            Failure::ResponseTimeout | Failure::BodyIdle | Failure::Total | Failure::TryTimeout => {
                "http_response_timeout"
            }
            Failure::NoSocket => "connection_limit_reached",
        }
    }

    /// The cause for the client: no address, nothing internal.
    pub fn detail(self) -> &'static str {
        match self {
            Failure::Refused => "the upstream refused the connection",
            Failure::Unreachable => "the upstream cannot be reached",
            Failure::ConnectTimeout => "the upstream did not accept the connection in time (timeouts.connect)",
            Failure::Unsent => "the upstream closed the connection before it had the request",
            Failure::Closed => "the upstream closed the connection without an answer",
            Failure::Incomplete => "the upstream closed the connection inside its response head",
            Failure::Malformed(_) => "the upstream's response is invalid",
            Failure::HeadTooLarge => "the upstream's response head is larger than limits.header_bytes",
            Failure::UnaskedUpgrade => "the upstream switched protocols without being asked",
            Failure::ResponseTimeout => "the upstream did not answer in time (timeouts.response)",
            Failure::BodyShort => "the upstream closed the connection inside its response body",
            Failure::BodyMalformed(_) => "the upstream's response body is invalid",
            Failure::BodyIdle => "the upstream's response body stalled (timeouts.idle)",
            Failure::Status(_) => "the upstream answered with an error",
            Failure::NoSocket => "the gateway has no socket left for the upstream",
            Failure::Total => "the exchange took too long (timeouts.total)",
            Failure::TryTimeout => "the upstream did not answer in time (retries.per_try_timeout)",
            Failure::Slow(_) => "the upstream answered slowly (circuit_breaker.slow_after)",
        }
    }
}

/// Why no upstream could be picked: nothing was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// No breaker lets the request pass.
    CircuitOpen,
    /// Every upstream that is available is at `max_requests`.
    MaxRequests,
    /// The service has none.
    NoUpstreams,
    /// All have the weight 0.
    Drained,
    /// No name has an address.
    Dns,
}

impl Unavailable {
    /// The words of all, in the order of the variants.
    pub const WORDS: [&'static str; 5] = ["circuit_open", "max_requests", "no_upstreams", "drained", "dns"];

    /// Its word.
    pub fn word(self) -> &'static str {
        Unavailable::WORDS[self as usize]
    }

    /// The error of `Proxy-Status` (RFC 9209 section 2.3).
    pub fn token(self) -> &'static str {
        match self {
            Unavailable::MaxRequests => "connection_limit_reached",
            Unavailable::Dns => "dns_error",
            _ => "destination_unavailable",
        }
    }

    /// The cause for the client.
    pub fn detail(self) -> &'static str {
        match self {
            Unavailable::CircuitOpen => "every upstream's circuit is open",
            Unavailable::MaxRequests => "every upstream that is available has reached max_requests",
            Unavailable::NoUpstreams => "the service has no upstreams",
            Unavailable::Drained => "every upstream of the service is drained (weight 0)",
            Unavailable::Dns => "no upstream's name resolves",
        }
    }
}

/// The cause for the operator, short.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused => f.write_str("connection refused"),
            Failure::Unreachable => f.write_str("unreachable"),
            Failure::ConnectTimeout => f.write_str("connect timeout"),
            Failure::Unsent => f.write_str("connection ended before the request was sent"),
            Failure::Closed => f.write_str("connection ended before the response"),
            Failure::Incomplete => f.write_str("connection ended inside the response head"),
            Failure::Malformed(how) => write!(f, "invalid response head: {how}"),
            Failure::HeadTooLarge => f.write_str("response head too large"),
            Failure::UnaskedUpgrade => f.write_str("101 that nobody asked for"),
            Failure::ResponseTimeout => f.write_str("response timeout"),
            Failure::BodyShort => f.write_str("connection ended inside the response body"),
            Failure::BodyMalformed(how) => write!(f, "invalid response body: {how}"),
            Failure::BodyIdle => f.write_str("response body stalled"),
            Failure::Status(status) => write!(f, "status {status}"),
            Failure::NoSocket => f.write_str("no socket left"),
            Failure::Total => f.write_str("total timeout"),
            Failure::TryTimeout => f.write_str("response timeout of one try"),
            Failure::Slow(ms) => write!(f, "slow answer: {ms} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds() {
        let (all, none) = (Causes::default(), Causes::none());
        let rows = [
            (Failure::Refused, Some(Class::Connect), 502, "connection_refused"),
            (Failure::ConnectTimeout, Some(Class::Connect), 504, "connection_timeout"),
            (Failure::Unsent, Some(Class::Unsent), 502, "connection_terminated"),
            (Failure::Closed, Some(Class::Closed), 502, "connection_terminated"),
            (Failure::Incomplete, Some(Class::Invalid), 502, "http_response_incomplete"),
            (Failure::Malformed("x"), Some(Class::Invalid), 502, "http_protocol_error"),
            (Failure::UnaskedUpgrade, Some(Class::Invalid), 502, "http_upgrade_failed"),
            (Failure::ResponseTimeout, Some(Class::Timeout), 504, "http_response_timeout"),
        ];
        for (failure, class, status, token) in rows {
            assert_eq!((failure.class(), failure.status(), failure.token()), (class, status, token));
            assert_eq!(failure.outcome(&all, &none), Outcome::Failure);
            assert_eq!(failure.outcome(&none, &none), Outcome::Neutral);
        }
        assert_eq!((Failure::Status(429).status(), Failure::Status(304).status()), (429, 502));
        assert_eq!(Failure::NoSocket.outcome(&all, &none), Outcome::Neutral);
        assert_eq!(Failure::Status(503).outcome(&all, &none), Outcome::Failure);
        assert_eq!(Failure::Status(501).outcome(&all, &none), Outcome::Success);
        let mut neutral = Causes::of(&[Class::Connect]);
        neutral.add_status(503);
        assert_eq!(Failure::Refused.outcome(&all, &neutral), Outcome::Neutral);
        assert_eq!(Failure::Status(503).outcome(&all, &neutral), Outcome::Neutral);
        assert_eq!(Failure::Status(502).outcome(&all, &neutral), Outcome::Failure);
    }
}
