//! What was asked, what was answered, and who saw it: the memory against which everything that leaves the
//! gateway is judged.

use crate::net::LinkId;
use crate::rng::mix;
use crate::watch::Watch;

/// What becomes of a request as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To a service, well-formed.
    Proxied,
    /// To a service that no configuration has.
    NoService,
    /// `/livez`.
    Live,
    /// `OPTIONS *`.
    Asterisk,
    /// `/v1/status`, which the control thread answers.
    Status,
    /// To be refused, with one of these statuses.
    Malformed(&'static [u16]),
    /// Arbitrary bytes.
    Garbage,
}

/// An upstream that got the head of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Try {
    pub(crate) link: LinkId,
    pub(crate) server: usize,
    pub(crate) at: u64,
    /// The first request on its connection.
    pub(crate) is_fresh: bool,
    /// The gateway had not given the connection up by then.
    pub(crate) is_live: bool,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) client: LinkId,
    pub(crate) kind: Kind,
    pub(crate) service: usize,
    /// For the policy `hash`: the value of a field and of a cookie.
    pub(crate) key: Option<u64>,
    pub(crate) method: &'static str,
    pub(crate) is_http11: bool,
    pub(crate) keeps_alive: bool,
    /// Behind the upstream's base path, with the query.
    pub(crate) rest: String,
    pub(crate) host: String,
    pub(crate) address: String,
    /// A valid `X-Request-Id`.
    pub(crate) request_id: Option<String>,
    pub(crate) is_chunked: bool,
    pub(crate) has_length: bool,
    pub(crate) body_len: usize,
    pub(crate) trailer: bool,
    pub(crate) expects: bool,
    /// Asks for a tunnel.
    pub(crate) upgrades: bool,
    /// `Connection` names fields, so trailers need not be passed on.
    pub(crate) names_fields: bool,
    /// The body turns malformed or ends early behind so many bytes.
    pub(crate) broken_at: Option<usize>,
    /// When its first byte was sent, and its last one so far.
    pub(crate) begun_at: u64,
    pub(crate) sent_at: u64,
    /// The oldest configuration that it can have met.
    pub(crate) oldest: usize,
    /// Upstreams that saw the whole head and acted on it, in that order.
    pub(crate) tries: Vec<Try>,
    /// Those of them that repeat a request after a stale connection.
    pub(crate) races: usize,
    /// An upstream has had it to its end.
    pub(crate) was_whole: bool,
    /// Its client has the head of a response, be it an interim one.
    pub(crate) is_answered: bool,
}

/// A response of an upstream.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) to: usize,
    /// Which of the tries it answers.
    pub(crate) nth: usize,
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) mark: String,
    pub(crate) body_len: usize,
    /// A `Content-Length` was announced, whether or not there is a body.
    pub(crate) announced: Option<usize>,
    /// It went out to its proper end.
    pub(crate) complete: bool,
    pub(crate) is_malformed: bool,
    /// It is a 101: `body_len` bytes follow from the upstream, `body_len` of the request from the client.
    pub(crate) is_tunnel: bool,
    pub(crate) interims: u32,
}

/// Counts for the report.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    /// Answers of upstreams that came whole.
    pub(crate) whole: u64,
    /// Answers of upstreams that were visibly cut.
    pub(crate) cut: u64,
    /// Answers of the gateway itself.
    pub(crate) own: u64,
    /// Requests on which the connection ended without a byte.
    pub(crate) unanswered: u64,
    pub(crate) repeated: u64,
    /// Those that are no repetition after a stale connection.
    pub(crate) retried: u64,
    /// Tunnels that both sides ended in order.
    pub(crate) tunnels: u64,
}

impl Tally {
    pub(crate) fn exchanges(&self) -> u64 {
        self.whole + self.cut + self.own
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        self.requests += other.requests;
        self.whole += other.whole;
        self.cut += other.cut;
        self.own += other.own;
        self.unanswered += other.unanswered;
        self.repeated += other.repeated;
        self.retried += other.retried;
        self.tunnels += other.tunnels;
    }
}

/// Everything that was said in a run.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) asked: Vec<Asked>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) tally: Tally,
    pub(crate) watch: Watch,
}

/// The key of a request's body.
pub(crate) fn request_key(seed: u64, asked: usize) -> u64 {
    mix(seed ^ 0xa5ced, asked as u64)
}

/// The key of a response's body.
pub(crate) fn answer_key(seed: u64, answer: usize) -> u64 {
    mix(seed ^ 0xa2553e4, answer as u64)
}
