//! What is wrong with a configuration file and where, in the form that the command line, the log and
//! the reload answer all print.
//!
//! While a file is read, its problems gather in [`Findings`]; at the end they are sorted and each gets
//! its source line. Both are bounded: a hostile file must not make its own error report the attack.
//!
//! Must not know: YAML, the keys of the configuration.

use std::fmt;

/// Characters of a source line that are shown; a longer line is cut to a window around the column.
const EXCERPT: usize = 120;
/// Characters shown in front of the column when a line is cut.
const LEAD: usize = 60;
/// Characters of a value that a message quotes.
const QUOTED: usize = 64;
/// Errors, and warnings, that are listed; of more, only that there are more.
const MOST: usize = 1000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used; it may not do what was meant.
    Warning,
}

impl Severity {
    /// The word of the printed form.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// One problem of a configuration file. Its `Display` is one to three lines without a final line end:
///
/// ```text
/// config.yaml:14:21: error: unknown key "colldown" in circuit_breaker of service "payments"
///    14 |   circuit_breaker: {colldown: 20s}
///       |                     ^^^^^^^^ did you mean "cooldown"?
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file's name as the caller gave it.
    pub file: String,
    /// Line, counted from 1; 0 when the problem belongs to the file as a whole.
    pub line: usize,
    /// Column in characters, counted from 1; 0 with `line`.
    pub column: usize,
    /// Characters that the carets mark, at least 1.
    pub width: usize,
    /// What is wrong, in one line.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The source line, cut around the column, without control characters. Empty when `line` is 0.
    pub source_line: String,
    /// Characters of `source_line` in front of the carets.
    indent: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.file.chars() {
            fmt::Write::write_char(f, harmless(c))?;
        }
        if self.line == 0 {
            write!(f, ": {}: {}", self.severity.word(), self.message)?;
            return self.help.iter().try_for_each(|help| write!(f, "\n      {help}"));
        }
        writeln!(f, ":{}:{}: {}: {}", self.line, self.column, self.severity.word(), self.message)?;
        writeln!(f, "{:>5} | {}", self.line, self.source_line)?;
        write!(f, "{:>5} | {:indent$}{:^<width$}", "", "", "", indent = self.indent, width = self.width)?;
        self.help.iter().try_for_each(|help| write!(f, " {help}"))
    }
}

/// A place in the source: line and column from 1, width in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) width: usize,
}

/// A message and perhaps a help, not yet placed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Fault {
        Fault { message: message.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Fault {
        self.help = Some(help.into());
        self
    }
}

struct Finding {
    severity: Severity,
    at: Option<At>,
    fault: Fault,
}

impl Finding {
    fn position(&self) -> (usize, usize) {
        self.at.map_or((0, 0), |at| (at.line, at.column))
    }
}

/// The problems of one file, as they are found.
#[derive(Default)]
pub(super) struct Findings {
    list: Vec<Finding>,
    errors: usize,
    warnings: usize,
}

impl Findings {
    pub(super) fn error(&mut self, at: impl Into<Option<At>>, fault: Fault) {
        self.errors += 1;
        if self.errors <= MOST {
            self.list.push(Finding { severity: Severity::Error, at: at.into(), fault });
        }
    }

    pub(super) fn warning(&mut self, at: impl Into<Option<At>>, fault: Fault) {
        self.warnings += 1;
        if self.warnings <= MOST {
            self.list.push(Finding { severity: Severity::Warning, at: at.into(), fault });
        }
    }

    /// Errors so far; unequal before and after a step means that the step failed.
    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    /// Sorts by position, drops repetitions (an alias is read at each use) and adds the source lines.
    pub(super) fn finish(mut self, file: &str, text: &str) -> Vec<Diagnostic> {
        self.list.sort_by_key(Finding::position);
        self.list.dedup_by(|a, b| a.at == b.at && a.fault == b.fault);
        let mut source = Source::new(text);
        let mut out: Vec<Diagnostic> = self.list.into_iter().map(|finding| source.diagnostic(file, finding)).collect();
        for (severity, number) in [(Severity::Error, self.errors), (Severity::Warning, self.warnings)] {
            if number > MOST {
                let fault = Fault::new(format!("there are more {}s than the {MOST} listed", severity.word()));
                out.push(source.diagnostic(file, Finding { severity, at: None, fault }));
            }
        }
        out
    }
}

/// A cursor over the lines of a file that only moves forward, so that a thousand problems on one huge
/// line cost one walk over it.
struct Source<'a> {
    line: &'a str,
    /// Characters of the line.
    length: usize,
    number: usize,
    /// A position inside the line.
    chars: usize,
    bytes: usize,
    /// Behind the line's end; `None` behind the last line.
    rest: Option<&'a str>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str) -> Source<'a> {
        let end = text.find(['\n', '\r']).unwrap_or(text.len());
        let (line, behind) = text.split_at(end);
        let rest = behind.strip_prefix("\r\n").or_else(|| behind.strip_prefix(['\n', '\r']));
        Source { line, length: line.chars().count(), number: 1, chars: 0, bytes: 0, rest }
    }

    fn diagnostic(&mut self, file: &str, finding: Finding) -> Diagnostic {
        let Finding { severity, at, fault } = finding;
        let mut diagnostic = Diagnostic {
            severity,
            file: file.to_owned(),
            line: 0,
            column: 0,
            width: 1,
            message: fault.message,
            help: fault.help,
            source_line: String::new(),
            indent: 0,
        };
        if let Some(at) = at.map(|at| self.reach(at)) {
            (diagnostic.line, diagnostic.column) = (at.line, at.column);
            (diagnostic.source_line, diagnostic.indent) = self.excerpt(at);
            let shown = diagnostic.source_line.chars().count();
            diagnostic.width = at.width.min(shown.saturating_sub(diagnostic.indent)).max(1);
        }
        diagnostic
    }

    /// Goes to the line of `at`. A parser may place what is missing behind the last line, or behind a line's
    /// end: that is the end.
    fn reach(&mut self, at: At) -> At {
        while let (true, Some(rest)) = (self.number < at.line, self.rest) {
            *self = Source { number: self.number + 1, ..Source::new(rest) };
        }
        let end = self.length + 1;
        if self.number < at.line {
            return At { line: self.number, column: end, width: 1 };
        }
        At { column: at.column.min(end), ..at }
    }

    /// The window of the present line around `at`, and where in it the column stands.
    fn excerpt(&mut self, at: At) -> (String, usize) {
        let ahead = at.column.saturating_sub(1);
        let start = if self.line.len() <= EXCERPT || ahead < LEAD { 0 } else { ahead - LEAD };
        let mut chars = self.line[self.bytes..].chars();
        while self.chars < start && chars.next().is_some() {
            self.chars += 1;
        }
        self.bytes = self.line.len() - chars.as_str().len();
        if start == 0 {
            chars = self.line.chars();
        }

        let mut window: String = chars.by_ref().take(EXCERPT).map(harmless).collect();
        if start > 0 {
            window.insert(0, '…');
        }
        if chars.next().is_some() {
            window.push('…');
        }
        (window, (ahead - start + usize::from(start > 0)).min(EXCERPT))
    }
}

/// A value of the file as a message shows it: in quotes, short, without control characters.
pub(super) fn quote(text: &str) -> String {
    let mut chars = text.chars();
    let mut quoted = String::from('"');
    quoted.extend(chars.by_ref().take(QUOTED).map(harmless));
    if chars.next().is_some() {
        quoted.push('…');
    }
    quoted.push('"');
    quoted
}

/// One character for one, so that columns hold. What moves the cursor, colours the terminal or turns
/// the direction of writing would let a file forge its own report.
fn harmless(c: char) -> char {
    match c {
        '\t' => ' ',
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, line: usize, column: usize, width: usize, fault: Fault) -> String {
        let mut findings = Findings::default();
        findings.error(At { line, column, width }, fault);
        findings.finish("c.yaml", text)[0].to_string()
    }

    #[test]
    fn the_printed_form() {
        let text = "a: 1\n\nb: {colldown: 20s}\n";
        let fault = Fault::new("unknown key \"colldown\"").help("did you mean \"cooldown\"?");
        assert_eq!(
            one(text, 3, 5, 8, fault),
            "c.yaml:3:5: error: unknown key \"colldown\"\n    3 | b: {colldown: 20s}\n      |     ^^^^^^^^ did you mean \"cooldown\"?"
        );
    }

    #[test]
    fn without_a_position_there_is_no_excerpt() {
        let mut findings = Findings::default();
        findings.warning(None, Fault::new("no services").help("add one"));
        assert_eq!(findings.finish("c.yaml", "")[0].to_string(), "c.yaml: warning: no services\n      add one");
    }

    #[test]
    fn columns_are_characters_and_every_line_end_counts() {
        assert_eq!(
            one("a\r\nb\rc\näöü: x", 4, 3, 1, Fault::new("m")),
            "c.yaml:4:3: error: m\n    4 | äöü: x\n      |   ^"
        );
    }

    #[test]
    fn a_long_line_is_cut_on_both_sides() {
        let text = format!("{}HERE{}", "a".repeat(500), "b".repeat(500));
        let shown = one(&text, 1, 501, 4, Fault::new("m"));
        let lines: Vec<&str> = shown.lines().collect();
        let at = lines[2].chars().position(|c| c == '^').unwrap();
        assert_eq!(lines[1].chars().skip(at).take(4).collect::<String>(), "HERE");
        assert!(lines[1].starts_with("    1 | …aaa") && lines[1].ends_with("bbb…"));
        assert!(lines[1].chars().count() < 140);
    }

    #[test]
    fn many_problems_on_one_line_keep_their_carets() {
        let text = "0123456789".repeat(100);
        let mut findings = Findings::default();
        for column in (1..1000).rev() {
            findings.error(At { line: 1, column, width: 1 }, Fault::new("m"));
        }
        for diagnostic in findings.finish("c", &text) {
            let shown = diagnostic.source_line.chars().nth(diagnostic.indent).unwrap();
            assert_eq!(shown.to_digit(10).unwrap() as usize, (diagnostic.column - 1) % 10);
        }
    }

    #[test]
    fn a_position_behind_the_end_is_no_harm() {
        assert_eq!(one("a", 9, 70, 5, Fault::new("m")).lines().count(), 3);
        assert_eq!(one("", 1, 1, 0, Fault::new("m")), "c.yaml:1:1: error: m\n    1 | \n      | ^");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let shown = one("a\t\u{1b}[31m\u{202e}b", 1, 3, 1, Fault::new(quote("\u{7}x\n")));
        assert_eq!(shown, "c.yaml:1:3: error: \"\u{fffd}x\u{fffd}\"\n    1 | a \u{fffd}[31m\u{fffd}b\n      |   ^");
    }

    #[test]
    fn repetitions_are_dropped_and_the_number_is_bounded() {
        let mut findings = Findings::default();
        for _ in 0..3 {
            findings.error(At { line: 1, column: 1, width: 1 }, Fault::new("m"));
        }
        assert_eq!(findings.finish("c", "a").len(), 1);
        let mut findings = Findings::default();
        for column in 1..5000 {
            findings.error(At { line: 1, column, width: 1 }, Fault::new("m"));
        }
        let all = findings.finish("c", "a");
        assert_eq!(all.len(), MOST + 1);
        assert_eq!(all[MOST].line, 0);
    }
}
