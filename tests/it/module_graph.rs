//! The modules of a crate import each other in one direction: no file depends on another one that depends on it.
//!
//! A file depends on another one when it names an item that is defined there. A re-export is a signpost: it is followed to the
//! definition, and is no dependency itself. Tests beside the code do not count: they may look at anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, ItemUse, UseTree, Visibility};

use crate::support::{repository, texts};

/// A path within a crate, as it is written.
type Segments = Vec<String>;

/// The modules and imports of one file.
#[derive(Default)]
struct Module {
    /// The names that stand for something else, and what that is: imports and re-exports.
    aliases: BTreeMap<String, Segments>,
    /// The modules that are re-exported as a whole.
    globs: Vec<Segments>,
    /// The paths that it names.
    paths: Vec<Segments>,
}

/// The modules of a crate, by their path in it.
struct Crate(BTreeMap<Segments, Module>);

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|one| one.path().is_ident("cfg") && one.to_token_stream().to_string().contains("test"))
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Mod(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        _ => &[],
    }
}

impl Module {
    fn of(source: &str) -> Self {
        let mut module = Self::default();
        for item in syn::parse_file(source).unwrap().items.into_iter().filter(|item| !is_test(attributes(item))) {
            match item {
                Item::Use(item) => module.import(&item),
                item => module.read(item.into_token_stream()),
            }
        }
        module
    }

    fn import(&mut self, item: &ItemUse) {
        let is_private = matches!(item.vis, Visibility::Inherited);
        self.flatten(&item.tree, &mut Vec::new(), is_private);
    }

    fn flatten(&mut self, tree: &UseTree, path: &mut Segments, is_private: bool) {
        match tree {
            UseTree::Path(one) => {
                path.push(one.ident.to_string());
                self.flatten(&one.tree, path, is_private);
                path.pop();
            }
            UseTree::Name(one) => self.alias(&one.ident.to_string(), &one.ident.to_string(), path, is_private),
            UseTree::Rename(one) => self.alias(&one.rename.to_string(), &one.ident.to_string(), path, is_private),
            UseTree::Glob(_) if is_private => self.paths.push(path.clone()),
            UseTree::Glob(_) => self.globs.push(path.clone()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.flatten(tree, path, is_private)),
        }
    }

    fn alias(&mut self, alias: &str, name: &str, path: &Segments, is_private: bool) {
        let mut target = path.clone();
        if name != "self" {
            target.push(name.to_owned());
        }
        let alias = if alias == "self" { target.last().cloned().unwrap_or_default() } else { alias.to_owned() };
        if is_private {
            self.paths.push(target.clone());
        }
        self.aliases.insert(alias, target);
    }

    /// Notes the paths in code, within macros as well.
    fn read(&mut self, tokens: TokenStream) {
        let (mut path, mut colons) = (Segments::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path);
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => colons += 1,
                token => {
                    self.end(&mut path);
                    colons = 0;
                    if let TokenTree::Group(group) = token {
                        self.read(group.stream());
                    }
                }
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Segments) {
        if path.len() > 1 {
            self.paths.push(path.clone());
        }
        path.clear();
    }
}

impl Crate {
    fn of(sources: &[(Segments, String)]) -> Self {
        Self(sources.iter().map(|(path, source)| (path.clone(), Module::of(source))).collect())
    }

    /// The module that a path leads to from another one, if it is of this crate. `depth` ends a path that leads to itself.
    fn resolve(&self, from: &Segments, path: &[String], depth: u32) -> Option<Segments> {
        let (first, mut rest) = path.split_first()?;
        let mut current = match first.as_str() {
            "crate" => Vec::new(),
            "self" => from.clone(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            name => return self.item(from, name, rest, depth),
        };
        while let Some((next, after)) = rest.split_first().filter(|(next, _)| *next == "super") {
            debug_assert_eq!(next, "super");
            current.pop()?;
            rest = after;
        }
        match rest.split_first() {
            None => Some(current),
            Some((name, rest)) => Some(self.item(&current, name, rest, depth).unwrap_or(current)),
        }
    }

    /// The module of what `name` is in a module, and of what follows it; `None` if nothing here has the name.
    fn item(&self, module: &Segments, name: &str, rest: &[String], depth: u32) -> Option<Segments> {
        let depth = depth.checked_sub(1)?;
        let child: Segments = module.iter().cloned().chain([name.to_owned()]).collect();
        if self.0.contains_key(&child) {
            let next = rest.split_first();
            return Some(next.and_then(|(name, rest)| self.item(&child, name, rest, depth)).unwrap_or(child));
        }
        let Module { aliases, globs, .. } = self.0.get(module)?;
        if let Some(target) = aliases.get(name).filter(|target| **target != [name]) {
            let target: Segments = target.iter().chain(rest).cloned().collect();
            return self.resolve(module, &target, depth);
        }
        globs.iter().find_map(|glob| {
            let target = self.resolve(module, glob, depth)?;
            self.item(&target, name, rest, depth)
        })
    }

    /// The dependencies of each module.
    fn dependencies(&self) -> BTreeMap<&Segments, BTreeSet<Segments>> {
        let of = |path: &Segments, module: &Module| {
            let found = module.paths.iter().filter_map(|named| self.resolve(path, named, 16));
            found.filter(|target| target != path && self.0.contains_key(target)).collect()
        };
        self.0.iter().map(|(path, module)| (path, of(path, module))).collect()
    }

    /// Modules that depend on each other in a circle, or on one that does, each with what it depends on.
    fn circles(&self) -> Vec<String> {
        let mut left = self.dependencies();
        loop {
            let ends: BTreeSet<Segments> =
                left.iter().filter(|(_, on)| on.is_empty()).map(|(path, _)| (*path).clone()).collect();
            if ends.is_empty() {
                break;
            }
            left.retain(|path, _| !ends.contains(*path));
            for on in left.values_mut() {
                on.retain(|path| !ends.contains(path));
            }
        }
        let name = |path: &Segments| if path.is_empty() { "lib".to_owned() } else { path.join("/") };
        let line = |(path, on): (&&Segments, &BTreeSet<Segments>)| {
            format!("{} -> {}", name(path), on.iter().map(name).collect::<Vec<_>>().join(", "))
        };
        left.iter().map(line).collect()
    }
}

/// The modules of a package's library, which its programs use from outside.
fn library(package: &str) -> Vec<(Segments, String)> {
    let directory = repository().join(package).join("src");
    let module = |(file, source): (String, String)| {
        let path = Path::new(&file).strip_prefix(&directory).unwrap().with_extension("");
        let path: Segments = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        (if path == ["lib"] { Vec::new() } else { path }, source)
    };
    let modules = texts(&directory, &["rs"]).into_iter().map(module);
    modules.filter(|(path, _)| path.last().is_none_or(|name| name != "main" && name != "tests")).collect()
}

#[test]
fn no_module_depends_on_one_that_depends_on_it() {
    let mut found = Vec::new();
    for package in ["bench", "cli", "client", "openapi", "server", "transparency", "validation", "verify"] {
        let sources = library(package);
        assert!(sources.len() > 2, "{package} has no modules");
        found.extend(Crate::of(&sources).circles().into_iter().map(|circle| format!("{package}: {circle}")));
    }
    assert!(found.is_empty(), "modules depend on each other:\n{}", found.join("\n"));
}

#[test]
fn a_circle_is_found_whichever_way_it_is_written() {
    let circles = |files: &[(&str, &str)]| {
        let path = |name: &str| name.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let sources: Vec<_> = files.iter().map(|(name, source)| (path(name), (*source).to_owned())).collect();
        Crate::of(&sources).circles()
    };
    let both = |a: &str, b: &str| circles(&[("", "mod a; mod b;"), ("a", a), ("b", b)]);
    assert_eq!(both("use crate::b::B; pub struct A;", "pub struct B;"), [""; 0]);
    for back in [
        "use super::a::A; pub struct B(A);",
        "pub struct B(crate::a::A);",
        "use super::a; pub fn b() { a::a(); }",
        "statements! { fn b() { crate::a::a() } }",
    ] {
        assert_eq!(both("use crate::b::B; pub struct A;", back), ["a -> b", "b -> a"], "{back}");
    }
    // A re-export is followed: the parent may show what its children have, and use them.
    let parent = "mod child; mod other; pub use other::Other; use child::Child; pub fn f(c: Child) {}";
    let files = |child| [("", "mod p;"), ("p", parent), ("p/child", child), ("p/other", "pub struct Other;")];
    assert_eq!(circles(&files("use super::Other; pub struct Child(Other);")), [""; 0]);
    assert_eq!(circles(&files("pub struct Child; fn g() { super::f(Child) }")), ["p -> p/child", "p/child -> p"]);
    // Tests look at anything.
    assert_eq!(
        both("use crate::b::B; pub struct A;", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }"),
        [""; 0]
    );
}
