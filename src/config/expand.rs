//! `${NAME}`, `${NAME:-default}` and `$$` in values.
//!
//! Must not know: where the values of names come from, positions in a file.

use super::diagnostics::{Fault, quote};

/// What is wrong with a reference, and which characters of the text it is.
#[derive(Debug, PartialEq)]
pub(super) struct Misuse {
    /// Characters in front of the reference.
    pub(super) offset: usize,
    /// Characters of the reference.
    pub(super) width: usize,
    pub(super) fault: Fault,
}

/// Expands every reference of `text`, once: what a variable holds is not looked through again.
/// As in a shell, the default also stands in for a variable that is set to nothing.
/// Ends early behind `most` bytes; the caller finds the result too long.
pub(super) fn expand(text: &str, most: usize, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Misuse> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$').filter(|_| out.len() <= most) {
        out.push_str(&rest[..dollar]);
        let behind = &rest[dollar + 1..];
        if let Some(inside) = behind.strip_prefix('{') {
            let end = inside.find('}');
            let misuse = |fault| {
                let reference = &rest[dollar..end.map_or(rest.len(), |end| dollar + 2 + end + 1)];
                let ahead = &text[..text.len() - rest.len() + dollar];
                Misuse { offset: ahead.chars().count(), width: reference.chars().count(), fault }
            };
            let end = end.ok_or_else(|| {
                misuse(Fault::new("\"${\" without its \"}\"").help("a plain \"$\" is written \"$$\""))
            })?;
            out.push_str(&value(&inside[..end], env).map_err(misuse)?);
            rest = &inside[end + 1..];
        } else {
            out.push('$');
            rest = behind.strip_prefix('$').unwrap_or(behind);
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The value of what stands between the braces.
fn value(inside: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Fault> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(valid) {
        let fault = Fault::new(format!("{} is not the name of an environment variable", quote(name)));
        return Err(fault.help("write \"${NAME}\" or \"${NAME:-default}\""));
    }
    match (env(name), default) {
        (_, Some(default)) if default.contains("${") => Err(Fault::new("a default cannot hold a further \"${\"")),
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            let fault = Fault::new(format!("environment variable {} is not set", quote(name)));
            Err(fault.help(format!("set it, or write \"${{{name}:-default}}\"")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String, Misuse> {
        expand(text, 4096, &|name| match name {
            "HOST" => Some("a.example".to_owned()),
            "TRAP" => Some("${HOST} $$".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn references() {
        for (text, expanded) in [
            ("plain", "plain"),
            ("http://${HOST}:${PORT:-9001}/", "http://a.example:9001/"),
            ("$$ $5 $", "$ $5 $"),
            ("$${HOST}", "${HOST}"),
            ("${TRAP}", "${HOST} $$"),
            ("${EMPTY}|${EMPTY:-x}|${NONE:-}|${HOST:-x}", "|x||a.example"),
            ("${NONE:-a:-b}", "a:-b"),
        ] {
            assert_eq!(run(text).unwrap(), expanded, "{text}");
        }
    }

    #[test]
    fn misuses_say_where() {
        for (text, offset, width, message) in [
            ("äö${NONE}x", 2, 7, "environment variable \"NONE\" is not set"),
            ("$$${NONE", 2, 6, "\"${\" without its \"}\""),
            ("${}", 0, 3, "\"\" is not the name of an environment variable"),
            ("${HOST}${9A}", 7, 5, "\"9A\" is not the name of an environment variable"),
            ("${A B}", 0, 6, "\"A B\" is not the name of an environment variable"),
            ("${NONE:-${HOST}}", 0, 15, "a default cannot hold a further \"${\""),
        ] {
            let misuse = run(text).unwrap_err();
            assert_eq!(
                (misuse.offset, misuse.width, misuse.fault.message.as_str()),
                (offset, width, message),
                "{text}"
            );
        }
    }
}
