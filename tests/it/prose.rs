//! The repository is written in plain sentences: the worst riddles of earlier versions do not come back.

use crate::support::{repository, texts};

/// Each stands for a noun that the sentence should name, or for a plain verb.
const RIDDLES: [&str; 19] = [
    "whoever",
    "to be had",
    "can be had",
    "cannot be had",
    "such as has",
    "there is of",
    "outlast time",
    "the end of time",
    "in this moment",
    "for fear of",
    "what can be done here",
    "is on the way to",
    "those who ask",
    "comes to be",
    "of its own making",
    "what is wanted",
    "what does not hold",
    "who mean harm",
    "be given back exactly",
];

const KINDS: [&str; 7] = ["rs", "md", "sql", "toml", "yml", "cfg", "http"];

/// Words that stand for a noun at the beginning of a comment in Rust.
const BEGINNINGS: [&str; 4] = ["Who ", "Whom ", "Whoever ", "Whatever "];

/// The beginning of a comment, if it is one that hides a noun.
fn hidden_noun(line: &str) -> Option<&'static str> {
    let line = line.trim_start();
    let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).or_else(|| line.strip_prefix("// "))?;
    BEGINNINGS.into_iter().find(|word| comment.trim_start().starts_with(word))
}

/// The riddles of a text, each with its line. A comment goes on in the next line.
fn riddles(text: &str) -> Vec<(usize, &'static str)> {
    let lines: Vec<_> =
        text.lines().map(|line| line.trim().trim_start_matches(['/', '!', '#', '-', ' ']).trim()).collect();
    let pairs = lines.iter().zip(lines.iter().skip(1).chain(&[""]));
    let mut found = Vec::new();
    for (number, (line, next)) in pairs.enumerate() {
        let (line, both) = (line.to_lowercase(), format!("{line} {next}").to_lowercase());
        let is_here = |at: usize| at < line.len();
        found.extend(
            RIDDLES.iter().filter(|riddle| word(&both, riddle).is_some_and(is_here)).map(|one| (number + 1, *one)),
        );
    }
    found
}

/// Where the words stand by themselves: names of functions have them between underscores.
fn word(text: &str, words: &str) -> Option<usize> {
    let is_name = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    let mut found = text.match_indices(words).filter(|(at, _)| {
        !is_name(text[..*at].chars().next_back()) && !is_name(text[at + words.len()..].chars().next())
    });
    found.next().map(|(at, _)| at)
}

#[test]
fn sentences_name_what_they_are_about() {
    let mut all = texts(&repository(), &KINDS);
    all.retain(|(path, _)| !path.ends_with("/prose.rs"));
    assert!(all.len() > 200, "only {} texts are read", all.len());
    let mut found: Vec<_> = all
        .iter()
        .flat_map(|(path, text)| {
            riddles(text).into_iter().map(move |(line, riddle)| format!("{path}:{line}: {riddle}"))
        })
        .collect();
    for (path, text) in texts(&repository(), &["rs"]) {
        let lines = text.lines().enumerate();
        found.extend(lines.filter_map(|(at, line)| Some(format!("{path}:{}: {}", at + 1, hidden_noun(line)?))));
    }
    assert!(found.is_empty(), "say it plainly:\n{}", found.join("\n"));
}

#[test]
fn a_riddle_is_seen_in_one_line_and_in_two() {
    assert_eq!(riddles("/// A page that cannot be had."), [(1, "cannot be had")]);
    assert_eq!(
        riddles("// Waits for\n// whoever holds it, which is to be\n// had."),
        [(2, "whoever"), (2, "to be had")]
    );
    assert_eq!(riddles("async fn whoever_is_named() {"), []);
    assert_eq!(hidden_noun("    /// Who is first says whether it is."), Some("Who "));
    assert_eq!(hidden_noun("/// The caller, who is first."), None);
}
