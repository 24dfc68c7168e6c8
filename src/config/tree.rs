//! The YAML of a file as a tree in which every node knows its place, aliases and merges resolved.
//!
//! YAML 1.2. A file is untrusted until it has been read: depth, number of nodes (each use of an alias
//! counts all that it stands for) and length of a value are bounded, and nothing here recurses.
//!
//! Must not know: the keys of the configuration, what a value means.

use super::diagnostics::{At, Fault, Findings, quote};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};
use std::collections::HashMap;
use std::rc::Rc;

/// Nodes of a file, aliases expanded; a long scalar counts as several.
const MOST_NODES: usize = 200_000;
/// Bytes of a scalar that count as a node, so that a few bytes of alias cannot multiply a long text.
const NODE_BYTES: usize = 256;
/// Mappings and lists inside of each other, aliases expanded.
const DEEPEST: usize = 64;
/// Bytes of one value.
pub(super) const LONGEST: usize = 4096;

/// A mapping, list or scalar, and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) value: Value,
    /// Nodes it counts as, itself included.
    weight: usize,
    /// Levels of mappings and lists; a scalar has none.
    height: usize,
}

#[derive(Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Rc<Node>>),
    Mapping(Vec<Entry>),
}

#[derive(Debug, Default)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Not quoted: it may be a number, a boolean or null.
    pub(super) plain: bool,
    /// Characters between the node's place and the text, when the text stands in the source as it is.
    pub(super) inset: Option<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Rc<str>,
    pub(super) key_at: At,
    pub(super) value: Rc<Node>,
}

impl Node {
    /// The value of `key`, if this is a mapping that has it.
    pub(super) fn find(&self, key: &str) -> Option<&Node> {
        let Value::Mapping(entries) = &self.value else { return None };
        entries.iter().find(|entry| &*entry.key == key).map(|entry| &*entry.value)
    }

    /// Nothing stands here: an empty value, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        let Value::Scalar(Scalar { text, plain: true, .. }) = &self.value else { return false };
        matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

/// Reads one document. `Err` is a problem that ends the reading and is to be reported alone; problems
/// that do not (duplicate keys, tags) go to `findings`. An empty file is a null scalar.
pub(super) fn read(text: &str, findings: &mut Findings) -> Result<Rc<Node>, (At, Fault)> {
    let mut builder = Builder { findings, open: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    let mut documents = 0;
    // Once it has failed, the parser repeats its error for ever: `?` is what ends the loop.
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| syntax(&error, text))?;
        if let Event::DocumentStart(_) = event {
            documents += 1;
            if documents > 1 {
                return Err((at(span), Fault::new("a second document: the configuration is a single one")));
            }
        }
        builder.take(event, span)?;
    }
    let nothing = || {
        Rc::new(Node {
            at: START,
            value: Value::Scalar(Scalar { plain: true, ..Scalar::default() }),
            weight: 1,
            height: 0,
        })
    };
    Ok(builder.root.unwrap_or_else(nothing))
}

const START: At = At { line: 1, column: 1, width: 1 };

/// The parser counts columns from 0.
fn at(span: Span) -> At {
    At {
        line: span.start.line(),
        column: span.start.col() + 1,
        width: span.end.index().saturating_sub(span.start.index()).max(1),
    }
}

fn syntax(error: &ScanError, text: &str) -> (At, Fault) {
    let marker = error.marker();
    let at = At { line: marker.line(), column: marker.col() + 1, width: 1 };
    let fault = match error.info() {
        "recursion limit exceeded" => too_deep(),
        "while parsing node, found unknown anchor" => Fault::new("this alias has no anchor"),
        info => Fault::new(format!("invalid YAML: {info}")),
    };
    let reference =
        marker.index().checked_sub(1).is_some_and(|ahead| text.chars().skip(ahead).take(2).eq("${".chars()));
    (at, if reference { fault.help("inside of {} or [], put \"${…}\" in quotes") } else { fault })
}

fn too_deep() -> Fault {
    Fault::new(format!("nested more than {DEEPEST} levels deep"))
}

/// A mapping or list whose end has not come yet.
struct Open {
    at: At,
    anchor: usize,
    weight: usize,
    height: usize,
    content: Content,
}

enum Content {
    List(Vec<Rc<Node>>),
    Mapping { entries: Vec<Entry>, lines: HashMap<Rc<str>, usize>, key: Option<Key>, merged: Vec<Entry> },
}

/// A key that waits for its value.
enum Key {
    Named(Rc<str>, At),
    /// `<<`: the entries of the value become entries of this mapping.
    Merge,
    /// One that cannot be used and was reported; its value is dropped.
    Bad,
}

struct Builder<'a> {
    findings: &'a mut Findings,
    open: Vec<Open>,
    /// By the parser's number; a mapping or list is here only once it has ended.
    anchors: HashMap<usize, Rc<Node>>,
    nodes: usize,
    root: Option<Rc<Node>>,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), (At, Fault)> {
        let at = at(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_deref(), at),
            Event::SequenceStart(anchor, tag) => self.begin(Content::List(Vec::new()), anchor, tag.as_deref(), at),
            Event::MappingStart(anchor, tag) => {
                let content =
                    Content::Mapping { entries: Vec::new(), lines: HashMap::new(), key: None, merged: Vec::new() };
                self.begin(content, anchor, tag.as_deref(), at)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.place(node, at),
                None => Err((at, Fault::new("this alias stands inside of what it names"))),
            },
            _ => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        at: At,
    ) -> Result<(), (At, Fault)> {
        if text.len() > LONGEST {
            return Err((at, Fault::new(format!("a value of more than {LONGEST} bytes"))));
        }
        let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
        if !is_text {
            self.refuse(tag, at);
        }
        let plain = style == ScalarStyle::Plain && !is_text;
        let length = text.chars().count();
        let inset = match style {
            ScalarStyle::Plain if at.width == length => Some(0),
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted if at.width == length + 2 => Some(1),
            _ => None,
        };
        let value = Value::Scalar(Scalar { text: text.to_owned(), plain, inset });
        let node = Rc::new(Node { at, value, weight: 1 + text.len() / NODE_BYTES, height: 0 });
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.place(node, at)
    }

    fn begin(&mut self, content: Content, anchor: usize, tag: Option<&Tag>, at: At) -> Result<(), (At, Fault)> {
        self.refuse(tag, at);
        if self.open.len() == DEEPEST {
            return Err((at, too_deep()));
        }
        // A block's span reaches to wherever its last line ends; its first character is what to point at.
        let at = At { width: 1, ..at };
        self.open.push(Open { at, anchor, weight: 1, height: 1, content });
        Ok(())
    }

    fn end(&mut self) -> Result<(), (At, Fault)> {
        let Some(Open { at, anchor, weight, height, content }) = self.open.pop() else { return Ok(()) };
        let value = match content {
            Content::List(items) => Value::List(items),
            Content::Mapping { mut entries, mut lines, merged, .. } => {
                for entry in merged {
                    if !lines.contains_key(&entry.key) {
                        lines.insert(Rc::clone(&entry.key), entry.key_at.line);
                        entries.push(entry);
                    }
                }
                Value::Mapping(entries)
            }
        };
        let node = Rc::new(Node { at, value, weight, height });
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        // Its own nodes were counted when they came.
        self.nodes -= weight - 1;
        self.place(node, at)
    }

    /// Puts a finished node where it belongs. `at` is the place of its use: of the alias, if it is one.
    fn place(&mut self, node: Rc<Node>, at: At) -> Result<(), (At, Fault)> {
        self.nodes += node.weight;
        if self.nodes > MOST_NODES {
            return Err((at, Fault::new(format!("more than {MOST_NODES} values, aliases expanded"))));
        }
        if self.open.len() + node.height > DEEPEST {
            return Err((at, too_deep()));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.weight += node.weight;
        parent.height = parent.height.max(node.height + 1);
        match &mut parent.content {
            Content::List(items) => items.push(node),
            Content::Mapping { entries, lines, key, merged } => match key.take() {
                None => *key = Some(read_key(&node, at, lines, self.findings)),
                Some(Key::Named(name, key_at)) => entries.push(Entry { key: name, key_at, value: node }),
                Some(Key::Merge) => merge(&node, at, merged, self.findings),
                Some(Key::Bad) => {}
            },
        }
        Ok(())
    }

    /// `!include` and its like would have to be obeyed; they are not, so they must not be passed over.
    fn refuse(&mut self, tag: Option<&Tag>, at: At) {
        if let Some(tag) = tag {
            let name = quote(&format!("{}{}", tag.handle, tag.suffix));
            self.findings.error(At { width: 1, ..at }, Fault::new(format!("tag {name} means nothing here")));
        }
    }
}

fn read_key(node: &Node, at: At, lines: &mut HashMap<Rc<str>, usize>, findings: &mut Findings) -> Key {
    let Value::Scalar(Scalar { text, plain, .. }) = &node.value else {
        findings.error(at, Fault::new("a key must be a word"));
        return Key::Bad;
    };
    if let Some(line) = lines.get(text.as_str()) {
        let fault = Fault::new(format!("duplicate key {}: it stands on line {line} already", quote(text)));
        let several = text == "<<" && *plain;
        findings.error(at, if several { fault.help("merge a list: \"<<: [*a, *b]\"") } else { fault });
        return Key::Bad;
    }
    let name: Rc<str> = text.as_str().into();
    lines.insert(Rc::clone(&name), at.line);
    if text == "<<" && *plain { Key::Merge } else { Key::Named(name, at) }
}

/// Notes the entries to be merged. Of equal keys the first is used, those of the mapping itself before all.
fn merge(node: &Node, at: At, merged: &mut Vec<Entry>, findings: &mut Findings) {
    let list = match &node.value {
        Value::List(items) => items.iter().map(|item| &item.value).collect(),
        value => vec![value],
    };
    for value in list {
        match value {
            Value::Mapping(entries) => merged.extend(entries.iter().cloned()),
            _ => findings.error(at, Fault::new("\"<<\" merges a mapping or a list of mappings")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree in one line, with the findings behind it.
    fn shown(text: &str) -> String {
        let mut findings = Findings::default();
        match read(text, &mut findings) {
            Ok(node) => {
                let mut out = show(&node);
                for problem in findings.finish("f", text) {
                    out.push_str(&format!(" | {}:{} {}", problem.line, problem.column, problem.message));
                }
                out
            }
            Err((at, fault)) => format!("{}:{} {}", at.line, at.column, fault.message),
        }
    }

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Scalar(scalar) if scalar.plain => scalar.text.clone(),
            Value::Scalar(scalar) => quote(&scalar.text),
            Value::List(items) => format!("[{}]", items.iter().map(|item| show(item)).collect::<Vec<_>>().join(" ")),
            Value::Mapping(entries) => {
                let entries: Vec<String> = entries.iter().map(|e| format!("{}={}", e.key, show(&e.value))).collect();
                format!("{{{}}}", entries.join(" "))
            }
        }
    }

    #[test]
    fn trees() {
        assert_eq!(shown("a: [1, \"2\", '3']\nb:\n  - c: d\n  -\n"), "{a=[1 \"2\" \"3\"] b=[{c=d} ]}");
        assert_eq!(shown(""), "");
        assert_eq!(shown("# nothing\n"), "");
        assert_eq!(shown("---\n...\n"), "");
        assert_eq!(shown("a: !!str 5"), "{a=\"5\"}");
        assert_eq!(shown("a: |\n  x\n  y\n"), "{a=\"x\u{fffd}y\u{fffd}\"}");
    }

    #[test]
    fn places() {
        let node = read("a: &x b\nc:\n  - \"ä$\"\n", &mut Findings::default()).unwrap();
        let Value::Mapping(entries) = &node.value else { panic!() };
        assert_eq!((entries[1].key_at.line, entries[1].key_at.column), (2, 1));
        let Value::List(items) = &entries[1].value.value else { panic!() };
        assert_eq!(items[0].at, At { line: 3, column: 5, width: 4 });
        let Value::Scalar(scalar) = &items[0].value else { panic!() };
        assert_eq!(scalar.inset, Some(1));
        let Value::Scalar(scalar) = &entries[0].value.value else { panic!() };
        assert_eq!(scalar.inset, None);
    }

    #[test]
    fn aliases_and_merges() {
        assert_eq!(shown("a: &x [1]\nb: *x\n"), "{a=[1] b=[1]}");
        assert_eq!(shown("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n"), "{a={p=1 q=2} b={q=3 p=1}}");
        assert_eq!(
            shown("a: &x {p: 1}\nb: &y {p: 2, q: 2}\nc: {<<: [*x, *y], r: 0}\n"),
            "{a={p=1} b={p=2 q=2} c={r=0 p=1 q=2}}"
        );
        assert_eq!(shown("a: &x {p: 1}\nb: &y {<<: *x, q: 2}\nc: {<<: *y}\n"), "{a={p=1} b={q=2 p=1} c={q=2 p=1}}");
        assert_eq!(shown("\"<<\": x"), "{<<=x}");
        assert_eq!(shown("<<: x"), "{} | 1:5 \"<<\" merges a mapping or a list of mappings");
        assert_eq!(shown("a: *x"), "1:4 this alias has no anchor");
        assert_eq!(shown("a: &x [*x]"), "1:8 this alias stands inside of what it names");
    }

    #[test]
    fn what_can_be_reported_together() {
        assert_eq!(
            shown("a: 1\nb: 2\na: 3\n[x]: 4\nc: !inc d\n"),
            "{a=1 b=2 c=d} | 3:1 duplicate key \"a\": it stands on line 1 already | 4:1 a key must be a word | 5:4 tag \"!inc\" means nothing here"
        );
    }

    #[test]
    fn what_is_reported_alone() {
        assert_eq!(shown("a: 1\na: 2\nb: ]\n"), "3:4 invalid YAML: misplaced bracket");
        assert_eq!(shown("a: 1\n---\nb: 2\n"), "2:1 a second document: the configuration is a single one");
        assert_eq!(shown("a: \0"), "1:4 invalid YAML: found unprintable character");
        assert_eq!(shown(&format!("a: {}", "x".repeat(5000))), "1:4 a value of more than 4096 bytes");
    }

    #[test]
    fn a_reference_in_braces_gets_a_help() {
        let (_, fault) = read("a: {b: ${C}}", &mut Findings::default()).unwrap_err();
        assert_eq!(fault.help.as_deref(), Some("inside of {} or [], put \"${…}\" in quotes"));
    }

    #[test]
    fn depth_is_bounded() {
        for nest in ["[", "{a: ", "- ", "? ", "[{a: "] {
            assert!(shown(&nest.repeat(100_000)).ends_with("nested more than 64 levels deep"), "{nest}");
        }
        assert_eq!(shown(&format!("{}{}", "[".repeat(64), "]".repeat(64))).len(), 128);
        assert!(shown(&format!("{}{}", "[".repeat(65), "]".repeat(65))).ends_with("deep"));
        let chain: String = (1..80).map(|n| format!("a{n}: &a{n} [*a{}]\n", n - 1)).collect();
        assert!(shown(&format!("a0: &a0 []\n{chain}")).ends_with("deep"));
    }

    #[test]
    fn aliases_multiply_within_a_bound() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for n in 1..20 {
            bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", ")));
        }
        assert!(shown(&bomb).ends_with("more than 200000 values, aliases expanded"));
        let mut merges = String::from("a: &a {k0: 0");
        (1..1000).for_each(|n| merges.push_str(&format!(", k{n}: {n}")));
        merges.push_str(&format!("}}\nb: {{<<: [{}]}}\n", vec!["*a"; 10_000].join(", ")));
        assert!(shown(&merges).ends_with("more than 200000 values, aliases expanded"));
        assert!(shown(&"- x\n".repeat(300_000)).ends_with("more than 200000 values, aliases expanded"));
    }
}
