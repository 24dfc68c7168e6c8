//! Where a head ends, and the line ends in it (RFC 9112 section 2.2).
//!
//! httparse takes a bare LF for a line end. The standard permits that and permits refusal; a gateway
//! that refuses cannot disagree with the next hop about where a line ends.
//! Must not know: what the lines mean.

/// Where a head stands after more of it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ends before this offset.
    At(usize),
    /// Its end has not come.
    Missing,
    /// A line ends with a bare LF.
    BareLf,
}

/// Looks for the end of the head in `bytes`, of which the first `scanned` were seen before.
pub fn end(bytes: &[u8], scanned: usize) -> End {
    for at in memchr::memchr_iter(b'\n', &bytes[scanned..]) {
        let at = scanned + at;
        match &bytes[..at] {
            [.., b'\r', b'\n', b'\r'] => return End::At(at + 1),
            [.., b'\r'] => {}
            _ => return End::BareLf,
        }
    }
    End::Missing
}

/// Whether every LF of a whole head is the second half of a CRLF. Without a branch, so that it is a few
/// vector instructions for a head of everyday size.
pub fn lines_end_with_crlf(head: &[u8]) -> bool {
    let pairs = head.iter().zip(head.get(1..).unwrap_or(b""));
    let bare = pairs.fold(false, |bare, (before, byte)| bare | ((*byte == b'\n') & (*before != b'\r')));
    !bare && head.first() != Some(&b'\n')
}

/// Bounds of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the request line with its CRLF.
    pub request_line: usize,
    /// Bytes of the field section.
    pub header_bytes: usize,
    /// Fields, at most [`crate::http::fields::MAX_FIELDS`].
    pub headers: usize,
}

impl Limits {
    /// A head cannot be longer than this.
    pub fn head(&self) -> usize {
        self.request_line + self.header_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_at_every_cut() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for cut in 0..head.len() {
            let first = end(&head[..cut], 0);
            if cut < 27 {
                assert_eq!(first, End::Missing, "{cut}");
                assert_eq!(end(head, cut), End::At(27));
            } else {
                assert_eq!(first, End::At(27));
            }
        }
    }

    #[test]
    fn a_bare_lf_is_seen() {
        assert_eq!(end(b"GET / HTTP/1.1\nHost: a\n\n", 0), End::BareLf);
        assert_eq!(end(b"GET / HTTP/1.1\r\n\n", 0), End::BareLf);
        assert!(!lines_end_with_crlf(b"\nGET / HTTP/1.1\r\n\r\n"));
        assert!(lines_end_with_crlf(b"GET / HTTP/1.1\r\n\r\n"));
    }
}
