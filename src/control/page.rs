//! The status page at `/`: one file with its script and style, which reads the events and asks for what an operator
//! wants. It holds no data, so nothing has to be escaped.
//!
//! Must not know: what the page shows.

use crate::control::{Control, Courier};
use crate::shard::mailbox::Ticket;
use std::fmt::Write as _;

const PAGE: &str = include_str!("page.html");
/// Where the page has the nonce of its answer.
const PLACE: &str = "{nonce}";

impl<C: Courier> Control<C> {
    /// Answers with the page. To one that needs a token too: it is the page that can ask for it.
    pub(super) fn show_page(&self, ticket: &Ticket) {
        let Some(nonce) = nonce() else {
            return self.answer_problem(ticket, 500, "no_random", "the system has no random bytes");
        };
        // Scripts and styles of this answer alone; nothing from and nothing to anywhere else (CSP level 3).
        let mut fields = format!(
            "Cache-Control: no-store\r\nContent-Security-Policy: default-src 'none'; script-src 'nonce-{nonce}'; \
             style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; \
             form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
        );
        if ticket.needs_token {
            fields.push_str("WWW-Authenticate: Bearer realm=\"fusegate\"\r\n");
        }
        let status = if ticket.needs_token { 401 } else { 200 };
        let reason = if ticket.needs_token { "no_token" } else { "own" };
        self.answer_with(
            ticket,
            status,
            reason,
            "text/html; charset=utf-8",
            &fields,
            PAGE.replace(PLACE, &nonce).as_bytes(),
        );
    }
}

/// 128 bits that nobody can guess.
fn nonce() -> Option<String> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    filled.ok().filter(|n| *n == bytes.len())?;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}
