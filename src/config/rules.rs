//! What a table of keys is made of: each field says what its value may be and where in a `T` it is kept, both ways.
//!
//! The way in is for the reader of a file, the way out for what is printed: the effective configuration, and the
//! defaults of the schema, which are what a default `T` holds. [`outline`] is that way out, without the types.
//!
//! Must not know: which fields there are, YAML, JSON.

use super::diagnostics::Fault;
use super::reader::Reader;
use super::tree::{Node, Value};
use super::units;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The keys of a mapping, in groups that several mappings can share.
pub(super) type Table<T> = &'static [&'static [Field<T>]];

/// A key of a mapping.
pub(super) struct Field<T: 'static> {
    pub(super) key: &'static str,
    /// What it is, in a line, for whoever edits a file.
    pub(super) doc: &'static str,
    pub(super) rule: Rule<T>,
}

/// What a field may hold, and where it goes.
pub(super) enum Rule<T: 'static> {
    Flag(Lens<T, bool>),
    Count(RangeInclusive<u64>, Lens<T, u64>),
    /// `None` is `auto`.
    CountOrAuto(RangeInclusive<u64>, Lens<T, Option<NonZeroUsize>>),
    Size(RangeInclusive<u64>, Lens<T, u64>),
    Duration(RangeInclusive<Duration>, Lens<T, Duration>),
    /// The same, or 0.
    DurationOrZero(RangeInclusive<Duration>, Lens<T, Duration>),
    /// `20%` or `0.2`, in hundredths of a percent, up to 100 %.
    Percent(Lens<T, u32>),
    /// `1.5`, in hundredths.
    Factor(RangeInclusive<u32>, Lens<T, u32>),
    /// One of some words.
    Word(&'static dyn Choice<T>),
    /// Text with rules of its own.
    Text(Form, fn(&mut T, &str) -> Result<(), Fault>, fn(&T) -> Option<String>),
    /// A list of texts.
    List(Form, fn(&mut T, &Node, &mut Reader<'_>), fn(&T) -> Vec<String>),
    /// A text, or a list of them.
    OneOrMore(Form, fn(&mut T, &Node, &mut Reader<'_>), fn(&T) -> Vec<String>),
    /// A mapping with a table of its own.
    Mapping(&'static dyn Section<T>),
    /// Read by whoever walks the mapping.
    Apart(Apart),
    /// A key that has its place elsewhere, and where that is.
    Elsewhere(&'static str),
}

/// What is read by whoever walks the mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Apart {
    /// The list of upstreams of a service.
    Upstreams,
    /// The URL of an upstream.
    Url,
}

/// How a text may look.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// Words that it may be.
    pub(super) words: fn() -> Vec<&'static str>,
    /// What it may be otherwise, as an anchored regular expression; empty for nothing.
    pub(super) pattern: &'static str,
    /// It may be written as a number.
    pub(super) numbers: Option<(u64, u64)>,
}

impl Form {
    /// Texts that match an anchored regular expression.
    pub(super) const fn pattern(pattern: &'static str) -> Form {
        Form { words: Vec::new, pattern, numbers: None }
    }
}

/// A place in a `T`.
pub(super) struct Lens<T: 'static, V: 'static> {
    pub(super) set: fn(&mut T, V),
    /// `None` when nothing is there, which for most kinds of values is written as 0.
    pub(super) get: fn(&T) -> Option<V>,
}

/// The lens for a field, or for a field of a field.
macro_rules! at {
    ($($field:ident).+) => {
        $crate::config::rules::Lens {
            set: |target, value| target.$($field).+ = $crate::config::rules::Kept::keep(value),
            get: |target| $crate::config::rules::Kept::kept(&target.$($field).+),
        }
    };
}
pub(super) use at;

/// How a value of a file is kept in the model.
///
/// A number that is to be kept is within the bounds of its rule, which is why the casts here lose nothing.
pub(super) trait Kept<V> {
    fn keep(value: V) -> Self;
    fn kept(&self) -> Option<V>;
}

/// What is kept as it is read.
macro_rules! kept_as_it_is {
    ($($kind:ty),+) => {$(
        impl Kept<$kind> for $kind {
            fn keep(value: $kind) -> $kind {
                value
            }

            fn kept(&self) -> Option<$kind> {
                Some(*self)
            }
        }
    )+};
}
kept_as_it_is!(bool, u64, u32, Duration, Option<NonZeroUsize>);

/// Numbers kept in less than the file could say.
macro_rules! kept_in_less {
    ($($kind:ty),+) => {$(
        impl Kept<u64> for $kind {
            fn keep(value: u64) -> $kind {
                value as $kind
            }

            fn kept(&self) -> Option<u64> {
                Some(*self as u64)
            }
        }
    )+};
}
kept_in_less!(u8, u32, usize);

impl Kept<u64> for Option<u64> {
    fn keep(value: u64) -> Option<u64> {
        (value > 0).then_some(value)
    }

    fn kept(&self) -> Option<u64> {
        *self
    }
}

impl Kept<u64> for Option<u32> {
    fn keep(value: u64) -> Option<u32> {
        (value > 0).then_some(value as u32)
    }

    fn kept(&self) -> Option<u64> {
        self.map(u64::from)
    }
}

impl Kept<Duration> for Option<Duration> {
    fn keep(value: Duration) -> Option<Duration> {
        (!value.is_zero()).then_some(value)
    }

    fn kept(&self) -> Option<Duration> {
        *self
    }
}

/// A field that holds one of some words.
pub(super) trait Choice<T> {
    fn words(&self) -> Vec<&'static str>;
    /// False when the word is none of them.
    fn set(&self, target: &mut T, word: &str) -> bool;
    fn get(&self, target: &T) -> Option<&'static str>;
}

/// Words and what each stands for.
pub(super) struct OneOf<T: 'static, V: 'static> {
    pub(super) words: &'static [(&'static str, V)],
    pub(super) set: fn(&mut T, V),
    pub(super) get: fn(&T) -> V,
}

impl<T, V: Copy + PartialEq> Choice<T> for OneOf<T, V> {
    fn words(&self) -> Vec<&'static str> {
        self.words.iter().map(|(word, _)| *word).collect()
    }

    fn set(&self, target: &mut T, word: &str) -> bool {
        let meant = self.words.iter().find(|(known, _)| *known == word);
        meant.map(|(_, value)| (self.set)(target, *value)).is_some()
    }

    fn get(&self, target: &T) -> Option<&'static str> {
        let value = (self.get)(target);
        self.words.iter().find(|(_, known)| *known == value).map(|(word, _)| *word)
    }
}

/// A mapping inside of a `T`.
pub(super) trait Section<T> {
    fn read(&self, target: &mut T, node: &Node, reader: &mut Reader<'_>);
    fn outline(&self, target: &T) -> Mapping;
}

/// What is wrong with several values of a mapping together. It is told whether each of them could be read, for those
/// that could not be have what was there before.
pub(super) type Check<U> = fn(&U, &Node, bool, &mut Reader<'_>);

/// A mapping that is a `U` inside of a `T`.
pub(super) struct Part<T: 'static, U: 'static> {
    pub(super) table: Table<U>,
    pub(super) of: fn(&T) -> &U,
    pub(super) of_mut: fn(&mut T) -> &mut U,
    pub(super) check: Option<Check<U>>,
}

/// A mapping that is there only when the file has it; `false` takes an inherited one away.
pub(super) struct Optional<T: 'static, U: 'static> {
    pub(super) table: Table<U>,
    pub(super) of: fn(&T) -> &Option<U>,
    pub(super) of_mut: fn(&mut T) -> &mut Option<U>,
    pub(super) check: Option<Check<U>>,
}

/// The part of a `T` that is a field, or the whole: `part!(Part, T.field, TABLE, None)`.
macro_rules! part {
    ($kind:ident, $whole:ident $(.$field:ident)*, $table:expr, $check:expr) => {
        $crate::config::rules::$kind {
            table: $table,
            of: |whole: &$whole| &(*whole)$(.$field)*,
            of_mut: |whole: &mut $whole| &mut (*whole)$(.$field)*,
            check: $check,
        }
    };
}
pub(super) use part;

impl<T, U> Section<T> for Part<T, U> {
    fn read(&self, target: &mut T, node: &Node, reader: &mut Reader<'_>) {
        read(self.table, self.check, (self.of_mut)(target), node, reader);
    }

    fn outline(&self, target: &T) -> Mapping {
        Mapping { entries: outline(self.table, (self.of)(target)), optional: false, off: false, words: Vec::new() }
    }
}

impl<T, U: Clone + Default> Section<T> for Optional<T, U> {
    fn read(&self, target: &mut T, node: &Node, reader: &mut Reader<'_>) {
        let part = (self.of_mut)(target);
        if reader.is_false(node) {
            *part = None;
        } else {
            read(self.table, self.check, part.get_or_insert_default(), node, reader);
        }
    }

    fn outline(&self, target: &T) -> Mapping {
        let part = (self.of)(target);
        let entries = outline(self.table, part.as_ref().unwrap_or(&U::default()));
        Mapping { entries, optional: true, off: part.is_none(), words: Vec::new() }
    }
}

/// A mapping that a word of its first key can stand for.
pub(super) struct Short<T: 'static, U: 'static> {
    pub(super) table: Table<U>,
    pub(super) of: fn(&T) -> &U,
    pub(super) of_mut: fn(&mut T) -> &mut U,
    pub(super) check: Option<Check<U>>,
}

fn first<U>(table: Table<U>) -> Option<&'static Field<U>> {
    table.iter().flat_map(|group| *group).next()
}

impl<T, U> Section<T> for Short<T, U> {
    fn read(&self, target: &mut T, node: &Node, reader: &mut Reader<'_>) {
        match first(self.table) {
            Some(first) if matches!(&node.value, Value::Scalar(_)) && !node.is_null() => {
                // What is wrong with it has been reported.
                let _ = reader.field(&first.rule, node, (self.of_mut)(target));
            }
            _ => read(self.table, self.check, (self.of_mut)(target), node, reader),
        }
    }

    fn outline(&self, target: &T) -> Mapping {
        let words = match first(self.table).map(|first| &first.rule) {
            Some(Rule::Word(choice)) => choice.words(),
            _ => Vec::new(),
        };
        Mapping { entries: outline(self.table, (self.of)(target)), optional: false, off: false, words }
    }
}

fn read<U>(table: Table<U>, check: Option<Check<U>>, part: &mut U, node: &Node, reader: &mut Reader<'_>) {
    let errors = reader.findings.errors();
    reader.mapping(node, table, part);
    if let Some(check) = check {
        let fine = reader.findings.errors() == errors;
        check(part, node, fine, reader);
    }
}

/// The keys of a table with what a `T` holds, without its type. Keys that have their place elsewhere are left out.
pub(super) fn outline<T>(table: Table<T>, of: &T) -> Vec<Entry> {
    let fields = table.iter().flat_map(|group| *group);
    fields.filter_map(|field| Some(Entry { key: field.key, doc: field.doc, what: field.rule.outline(of)? })).collect()
}

/// A key, as the outside sees it.
pub(super) struct Entry {
    pub(super) key: &'static str,
    pub(super) doc: &'static str,
    pub(super) what: What,
}

/// What a key holds.
pub(super) enum What {
    /// A value of a kind; nothing when the file need not have one and has none.
    Value(Kind, Option<Shown>),
    Mapping(Mapping),
    Apart(Apart),
}

/// A mapping with its keys.
pub(super) struct Mapping {
    pub(super) entries: Vec<Entry>,
    /// `false` switches it off.
    pub(super) optional: bool,
    /// It is off; the entries hold what it would begin with.
    pub(super) off: bool,
    /// Words that stand for it when its first key is all that it needs.
    pub(super) words: Vec<&'static str>,
}

/// What a value may be.
pub(super) enum Kind {
    Flag,
    Count(RangeInclusive<u64>),
    CountOrAuto(RangeInclusive<u64>),
    Size(RangeInclusive<u64>),
    Duration(RangeInclusive<Duration>),
    DurationOrZero(RangeInclusive<Duration>),
    Percent,
    /// In hundredths.
    Factor(RangeInclusive<u32>),
    Word(Vec<&'static str>),
    Text(Form),
    List(Form),
    OneOrMore(Form),
}

/// A value as the file would write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// A number or a boolean.
    Bare(String),
    /// Text, which may have to be quoted.
    Text(String),
    List(Vec<Shown>),
}

impl<T> Rule<T> {
    fn outline(&self, of: &T) -> Option<What> {
        let bare = |text: String| Some(Shown::Bare(text));
        let text = |text: String| Some(Shown::Text(text));
        let unit = |text: String| Some(if text == "0" { Shown::Bare(text) } else { Shown::Text(text) });
        let (kind, shown) = match self {
            Rule::Flag(lens) => (Kind::Flag, (lens.get)(of).and_then(|flag| bare(flag.to_string()))),
            Rule::Count(range, lens) => {
                (Kind::Count(range.clone()), bare((lens.get)(of).unwrap_or_default().to_string()))
            }
            Rule::CountOrAuto(range, lens) => {
                let count = (lens.get)(of).flatten().map(|count| count.to_string());
                (Kind::CountOrAuto(range.clone()), count.map_or_else(|| text("auto".to_owned()), bare))
            }
            Rule::Size(range, lens) => {
                (Kind::Size(range.clone()), unit(units::show_size((lens.get)(of).unwrap_or_default())))
            }
            Rule::Duration(range, lens) => {
                (Kind::Duration(range.clone()), (lens.get)(of).and_then(|value| text(units::show_duration(value))))
            }
            Rule::DurationOrZero(range, lens) => {
                let value = (lens.get)(of).unwrap_or_default();
                (Kind::DurationOrZero(range.clone()), unit(units::show_duration(value)))
            }
            Rule::Percent(lens) => {
                (Kind::Percent, text(units::show_hundredths((lens.get)(of).unwrap_or_default()) + "%"))
            }
            Rule::Factor(range, lens) => {
                (Kind::Factor(range.clone()), (lens.get)(of).and_then(|value| bare(units::show_hundredths(value))))
            }
            Rule::Word(choice) => (Kind::Word(choice.words()), choice.get(of).and_then(|word| text(word.to_owned()))),
            Rule::Text(form, _, get) => (Kind::Text(*form), get(of).and_then(text)),
            Rule::List(form, _, get) => (Kind::List(*form), Some(form.list(get(of)))),
            Rule::OneOrMore(form, _, get) => (Kind::OneOrMore(*form), Some(form.one_or_more(get(of)))),
            Rule::Mapping(section) => return Some(What::Mapping(section.outline(of))),
            Rule::Apart(apart) => return Some(What::Apart(*apart)),
            Rule::Elsewhere(_) => return None,
        };
        Some(What::Value(kind, shown))
    }
}

impl Form {
    fn list(&self, texts: Vec<String>) -> Shown {
        let is_number = |text: &str| self.numbers.is_some() && text.bytes().all(|byte| byte.is_ascii_digit());
        let shown = |text: String| if is_number(&text) { Shown::Bare(text) } else { Shown::Text(text) };
        Shown::List(texts.into_iter().map(shown).collect())
    }

    fn one_or_more(&self, texts: Vec<String>) -> Shown {
        match self.list(texts) {
            Shown::List(items) if items.len() == 1 => items.into_iter().next().unwrap_or(Shown::List(Vec::new())),
            list => list,
        }
    }
}
