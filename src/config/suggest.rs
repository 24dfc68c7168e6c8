//! "Did you mean …?": the nearest of the words that would have been right.
//!
//! Must not know: which words those are.

use super::diagnostics::quote;

/// Longer words are no typing errors, and the table of distances grows with their square.
const LONGEST: usize = 40;

/// A help that proposes the nearest of `words`, if one is near.
pub(super) fn did_you_mean<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, words).map(|near| format!("did you mean {}?", quote(near)))
}

/// The nearest of `words` that a few slips of the fingers turn into `word`: one for every three letters.
fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = letters(word);
    if typed.len() > LONGEST {
        return None;
    }
    words
        .into_iter()
        .map(|known| (distance(&typed, &letters(known)), known))
        .filter(|&(slips, known)| slips <= (known.chars().count() / 3).max(1))
        .min_by_key(|&(slips, _)| slips)
        .map(|(_, known)| known)
}

/// Case and the kind of hyphen are not worth a slip.
fn letters(word: &str) -> Vec<char> {
    word.chars().take(LONGEST + 1).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours from `a` to `b`.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = above[j] + usize::from(a[i] != b[j]);
            let mut least = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_fingers() {
        let words = ["cooldown", "failure_threshold", "failure_on", "url"];
        assert_eq!(nearest("colldown", words), Some("cooldown"));
        assert_eq!(nearest("Failure-Threshold", words), Some("failure_threshold"));
        assert_eq!(nearest("failureThreshold", words), Some("failure_threshold"));
        assert_eq!(nearest("ulr", words), Some("url"));
        assert_eq!(nearest("weight", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest(&"c".repeat(100_000), words), None);
    }

    #[test]
    fn distances() {
        let d = |a: &str, b: &str| distance(&letters(a), &letters(b));
        assert_eq!((d("", ""), d("", "ab"), d("ab", ""), d("ab", "ab")), (0, 2, 2, 0));
        assert_eq!((d("ab", "ba"), d("kitten", "sitting"), d("abc", "xbc")), (1, 3, 1));
    }
}
