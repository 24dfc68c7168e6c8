//! The token of administration: read from a file of its own, compared without telling how much of it was right, shown
//! nowhere.
//!
//! Must not know: HTTP, what the token opens.

use std::fmt;
use subtle::ConstantTimeEq as _;

/// Bytes of a token: fewer can be guessed.
const SHORTEST: usize = 16;
/// More is some other file.
pub(super) const LONGEST: usize = 4096;

/// A secret that whoever administers the gateway must know.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Box<[u8]>);

impl Token {
    /// The token in the content of a file, whose last line may end.
    pub fn parse(content: &[u8]) -> Result<Token, String> {
        let token = content.strip_suffix(b"\n").unwrap_or(content);
        let token = token.strip_suffix(b"\r").unwrap_or(token);
        if !(SHORTEST..=LONGEST).contains(&token.len()) {
            return Err(format!("a token has from {SHORTEST} to {LONGEST} bytes, this one has {}", token.len()));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err("a token is one line of visible ASCII characters without spaces".to_owned());
        }
        Ok(Token(token.into()))
    }

    /// Whether this is the token. How long that takes tells the length at most.
    pub fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_visible_line() {
        let token = Token::parse(b"0123456789abcdef\r\n").unwrap();
        assert!(token.is(b"0123456789abcdef"));
        for wrong in [&b"0123456789abcdeg"[..], b"0123456789abcde", b"", b"0123456789abcdef\n"] {
            assert!(!token.is(wrong));
        }
        assert!(!format!("{token:?}").contains("0123"));
        for bad in
            [&b""[..], b"0123456789abcde\n", b"0123456789abcdef\n\n", b"0123456 89abcdef", b"0123456789abcde\xc3\xa9"]
        {
            assert!(Token::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(Token::parse(&[b'x'; LONGEST]).is_ok() && Token::parse(&[b'x'; LONGEST + 1]).is_err());
    }
}
