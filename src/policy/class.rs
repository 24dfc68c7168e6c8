//! The classes of what can go wrong with an attempt, and sets of them: what a breaker counts, what is retried.
//!
//! The words here are the only ones: configuration (`circuit_breaker.failure_on`), log, metrics and
//! status all use `Class::word`. Must not know: sockets, the clock, configuration files.

/// What went wrong with an attempt, as far as policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// No connection: every address refused, was unreachable or timed out.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The connection ended before the request head was wholly written.
    Unsent,
    /// The connection ended before the first response byte.
    Closed,
    /// The response head was cut or invalid.
    Invalid,
    /// No response head in time.
    Timeout,
    /// The response body was cut short, malformed or stalled.
    Cut,
    /// A 5xx status that counts.
    Status,
}

impl Class {
    /// Every class, in the order in which they can happen.
    pub const ALL: [Class; 8] = [
        Class::Connect,
        Class::Tls,
        Class::Unsent,
        Class::Closed,
        Class::Invalid,
        Class::Timeout,
        Class::Cut,
        Class::Status,
    ];

    /// The word of the configuration, the log, the metrics and the status document.
    pub fn word(self) -> &'static str {
        match self {
            Class::Connect => "connect",
            Class::Tls => "tls",
            Class::Unsent => "unsent",
            Class::Closed => "closed",
            Class::Invalid => "invalid",
            Class::Timeout => "timeout",
            Class::Cut => "cut",
            Class::Status => "5xx",
        }
    }

    /// The class that `word` names.
    pub fn from_word(word: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.word() == word)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of classes and statuses: `circuit_breaker.failure_on` (the default), `neutral_on`, `retries.on`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Causes {
    classes: u8,
    /// Status codes 100 to 599 that are listed one by one; bit `code - 100`.
    statuses: [u64; 8],
}

impl Causes {
    /// A set that counts nothing.
    pub fn none() -> Causes {
        Causes { classes: 0, statuses: [0; 8] }
    }

    /// Adds a class. [`Class::Status`] stands for every 5xx but 501 and 505.
    pub fn add_class(&mut self, class: Class) {
        self.classes |= class.bit();
    }

    /// Adds one status code; codes outside 100 to 599 are ignored.
    pub fn add_status(&mut self, code: u16) {
        if let Some(at) = Self::position(code) {
            self.statuses[at / 64] |= 1 << (at % 64);
        }
    }

    /// The set of these classes.
    pub fn of(classes: &[Class]) -> Causes {
        let mut set = Causes::none();
        classes.iter().for_each(|class| set.add_class(*class));
        set
    }

    /// Whether a status is in both sets by its number: classes do not count.
    pub fn shared_status(&self, other: &Causes) -> Option<u16> {
        (100..600).find(|code| self.lists_status(*code) && other.lists_status(*code))
    }

    /// Whether a status is in it by its number: classes do not count.
    pub fn lists_status(&self, code: u16) -> bool {
        Self::position(code).is_some_and(|at| self.statuses[at / 64] & (1 << (at % 64)) != 0)
    }

    /// Whether an attempt that ended with `class` is in it.
    pub fn counts_class(&self, class: Class) -> bool {
        self.classes & class.bit() != 0
    }

    /// Whether a final response with this status is in it.
    pub fn counts_status(&self, code: u16) -> bool {
        let by_class = (500..600).contains(&code) && code != 501 && code != 505 && self.counts_class(Class::Status);
        by_class || self.lists_status(code)
    }

    fn position(code: u16) -> Option<usize> {
        (100..600).contains(&code).then(|| usize::from(code) - 100)
    }
}

impl Default for Causes {
    fn default() -> Causes {
        Causes { classes: u8::MAX, statuses: [0; 8] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_their_classes() {
        for class in Class::ALL {
            assert_eq!(Class::from_word(class.word()), Some(class));
        }
        assert_eq!(Class::from_word("client"), None);
    }

    #[test]
    fn the_default_counts_server_errors_but_not_501_and_505() {
        let set = Causes::default();
        assert!(set.counts_status(500) && set.counts_status(503) && set.counts_status(599));
        assert!(!set.counts_status(501) && !set.counts_status(505) && !set.counts_status(404));
        assert!(Class::ALL.into_iter().all(|class| set.counts_class(class)));
    }

    #[test]
    fn a_listed_code_counts_alone() {
        let mut set = Causes::none();
        set.add_status(429);
        set.add_status(501);
        assert!(set.counts_status(429) && set.counts_status(501));
        assert!(!set.counts_status(500) && !set.counts_status(430) && !set.counts_class(Class::Status));
    }
}
