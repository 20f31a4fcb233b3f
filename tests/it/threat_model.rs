//! Each promise of the threat model names its test: those tests are there.

use std::{fs, path::Path};

use crate::support::{repository, texts};

fn is_file(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "rs")
}

/// The text between backticks that looks like the name of a test, or of a file with tests.
fn named(page: &str) -> impl Iterator<Item = &str> {
    let code = page.split('`').skip(1).step_by(2);
    code.filter(|text| {
        let is_name =
            text.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || "_:/.…".contains(char));
        is_name && (is_file(text) || text.matches('_').count() >= 3)
    })
}

/// Whether a function has this name, of which `…` leaves out the beginning or the end.
fn is_there(name: &str, sources: &[(String, String)]) -> bool {
    let (module, function) = name.rsplit_once("::").map_or((None, name), |(module, function)| (Some(module), function));
    let files = sources.iter().filter(|(path, _)| module.is_none_or(|module| path.contains(&format!("/{module}"))));
    let mut functions = files.flat_map(|(_, text)| text.split("fn ").skip(1)).filter_map(|rest| rest.split('(').next());
    functions.any(|known| match (function.strip_prefix('…'), function.strip_suffix('…')) {
        (Some(end), None) => known.ends_with(end),
        (None, Some(start)) => known.starts_with(start),
        (Some(_), Some(both)) => known.contains(both.trim_start_matches('…')),
        (None, None) => known == function,
    })
}

#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let page = fs::read_to_string(repository().join("docs/threat-model.md")).unwrap();
    let sources =
        ["tests/it", "server/src", "client/src", "cli/src"].map(|name| texts(&repository().join(name), &["rs"]));
    let all = sources.concat();
    let is_known = |name: &&str| {
        if is_file(name) {
            all.iter().any(|(path, _)| path.ends_with(&format!("/{name}")))
        } else {
            is_there(name, &all)
        }
    };
    let (known, unknown): (Vec<_>, Vec<_>) = named(&page).partition(is_known);
    assert!(unknown.is_empty(), "the threat model names tests that are not there: {unknown:#?}");
    assert!(known.len() > 100, "only {} tests are named", known.len());
}

#[test]
fn a_test_that_is_not_there_is_seen() {
    let sources = [("tests/it/client/foreign.rs".to_owned(), "async fn a_leaf_is_refused_and_told() {".to_owned())];
    for (name, there) in [
        ("a_leaf_is_refused_and_told", true),
        ("foreign::a_leaf_is_refused_…", true),
        ("…_is_refused_and_told", true),
        ("impostors::a_leaf_is_refused_and_told", false),
        ("a_leaf_is_refused_and", false),
    ] {
        assert_eq!(is_there(name, &sources), there, "{name}");
    }
}
