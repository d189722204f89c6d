//! Reading a JSON document field by field, collecting every mistake instead of stopping at the first.
//! Used by the readers of the kinds. Pure.
//!
//! A [`Fields`] is one object, an [`At`] one value with its path. Readers of wrong values report and
//! return nothing; whoever starts the reading throws the result away when there is any mistake, so
//! the stand-ins that readers fill in are never seen. `null` is the same as absent, as in Kubernetes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::mistake::{Mistake, Problem, closest};
use super::names;
use crate::policy::canonical;

/// More mistakes than anyone reads; the rest is not collected, so that an answer stays small.
const MAX_MISTAKES: usize = 50;

/// All mistakes of one document.
#[derive(Debug, Default)]
pub(super) struct Mistakes(RefCell<Vec<Mistake>>);

/// One object. [`Fields::finish`] refuses what was not asked for.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
    mistakes: &'a Mistakes,
    asked: Vec<&'static str>,
}

/// One value and where it is.
pub(super) struct At<'a> {
    value: &'a Value,
    path: String,
    mistakes: &'a Mistakes,
}

impl Mistakes {
    pub(super) fn report(&self, path: impl Into<String>, problem: Problem) {
        let mut found = self.0.borrow_mut();
        if found.len() < MAX_MISTAKES {
            found.push(Mistake { path: path.into(), problem });
        }
    }

    fn count(&self) -> usize {
        self.0.borrow().len()
    }

    pub(super) fn into_result<T>(self, read: T) -> Result<T, Vec<Mistake>> {
        let found = self.0.into_inner();
        if found.is_empty() { Ok(read) } else { Err(found) }
    }
}

impl<'a> Fields<'a> {
    pub(super) fn document(map: &'a Map<String, Value>, mistakes: &'a Mistakes) -> Self {
        Self { map, path: String::new(), mistakes, asked: Vec::new() }
    }

    /// The value of a field, if it is there.
    pub(super) fn at(&mut self, name: &'static str) -> Option<At<'a>> {
        self.asked.push(name);
        let value = self.map.get(name).filter(|value| !value.is_null())?;
        Some(At { value, path: self.path_of(name), mistakes: self.mistakes })
    }

    /// The value of a field that has to be there; `meant` says what to write.
    pub(super) fn required(&mut self, name: &'static str, meant: &'static str) -> Option<At<'a>> {
        let found = self.at(name);
        if found.is_none() {
            self.mistakes.report(self.path_of(name), Problem::Missing { meant });
        }
        found
    }

    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.at(name).and_then(At::text)
    }

    pub(super) fn object(&mut self, name: &'static str) -> Option<Fields<'a>> {
        self.at(name).and_then(At::object)
    }

    /// The items of a list; none when it is absent.
    pub(super) fn list(&mut self, name: &'static str) -> Vec<At<'a>> {
        self.at(name).map(At::list).unwrap_or_default()
    }

    /// The non-empty texts of a list.
    pub(super) fn texts(&mut self, name: &'static str) -> Vec<String> {
        self.list(name).into_iter().filter_map(At::text).collect()
    }

    /// A field of which only the values that mean what this version does anyway are taken.
    pub(super) fn only(&mut self, name: &'static str, accepted: &[&str], instead: &str) {
        let Some(at) = self.at(name) else { return };
        let texts: Vec<&str> = match at.value {
            Value::Array(items) => items.iter().map(|item| item.as_str().unwrap_or("?")).collect(),
            Value::String(text) => vec![text],
            _ => vec!["?"],
        };
        if !texts.iter().all(|text| accepted.contains(text)) {
            at.unsupported::<()>(instead);
        }
    }

    /// Reports what is wrong with several fields of this object together.
    pub(super) fn conflict(&self, why: impl Into<String>) {
        self.mistakes.report(self.path.clone(), Problem::Conflict { why: why.into() });
    }

    /// How many mistakes there are by now, so that what follows from one is not reported as another.
    pub(super) fn n_mistakes(&self) -> usize {
        self.mistakes.count()
    }

    /// Like [`Fields::finish`]; then reports `conflict`, unless other mistakes since `before` explain it.
    pub(super) fn finish_unless(self, unsupported: &[(&'static str, &str)], before: usize, conflict: Option<&str>) {
        let (path, mistakes) = (self.path.clone(), self.mistakes);
        self.finish(unsupported);
        if let Some(why) = conflict.filter(|_| mistakes.count() == before) {
            mistakes.report(path, Problem::Conflict { why: why.to_owned() });
        }
    }

    /// Refuses every field that was not asked for: as not supported when it is one of `unsupported`
    /// (fields of the schema upstream, with what to do instead), else as unknown.
    pub(super) fn finish(self, unsupported: &[(&'static str, &str)]) {
        for (name, value) in self.map {
            if self.asked.contains(&name.as_str()) {
                continue;
            }
            let problem = match unsupported.iter().find(|(known, _)| known == name) {
                // Dumps of an API server spell out what was never set.
                Some(_) if is_unset(value) => continue,
                Some((_, instead)) => Problem::Unsupported { instead: (*instead).to_owned() },
                None => {
                    let known = self.asked.iter().copied().chain(unsupported.iter().map(|(known, _)| *known));
                    Problem::Unknown { meant: closest(name, known) }
                }
            };
            self.mistakes.report(self.path_of(&shorten(name)), problem);
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

impl<'a> At<'a> {
    pub(super) fn object(self) -> Option<Fields<'a>> {
        match self.value {
            Value::Object(map) => Some(Fields { map, path: self.path, mistakes: self.mistakes, asked: Vec::new() }),
            _ => self.wrong_type("an object"),
        }
    }

    pub(super) fn list(self) -> Vec<At<'a>> {
        let Value::Array(items) = self.value else { return self.wrong_type("a list").unwrap_or_default() };
        let item = |(n, value)| At { value, path: format!("{}[{n}]", self.path), mistakes: self.mistakes };
        items.iter().enumerate().map(item).collect()
    }

    /// A list that says something, where an empty one could be read as everything or as nothing.
    pub(super) fn filled_list(self, meant: &str) -> Vec<At<'a>> {
        if self.value.as_array().is_some_and(Vec::is_empty) {
            self.mistakes.report(self.path.clone(), Problem::Conflict { why: format!("is empty: {meant}") });
        }
        self.list()
    }

    /// A text that is not empty.
    pub(super) fn text(self) -> Option<String> {
        match self.value {
            Value::String(text) if text.is_empty() => self.invalid("", "a text"),
            Value::String(text) => Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => self.wrong_type("a text; put it in quotes"),
            _ => self.wrong_type("a text"),
        }
    }

    /// A text that may be empty.
    pub(super) fn any_text(self) -> Option<String> {
        if self.value.as_str() == Some("") { Some(String::new()) } else { self.text() }
    }

    pub(super) fn boolean(self) -> Option<bool> {
        match self.value {
            Value::Bool(value) => Some(*value),
            _ => self.wrong_type("true or false"),
        }
    }

    pub(super) fn number(self, least: u32, most: u32) -> Option<u32> {
        let Value::Number(number) = self.value else { return self.wrong_type("a number") };
        let found = number.as_u64().and_then(|number| u32::try_from(number).ok());
        match found.filter(|number| (least..=most).contains(number)) {
            Some(number) => Some(number),
            None => self.invalid(&number.to_string(), format!("a whole number from {least} to {most}")),
        }
    }

    pub(super) fn port(self) -> Option<u16> {
        let Value::Number(number) = self.value else { return self.wrong_type("a port number") };
        match number.as_u64().and_then(|number| u16::try_from(number).ok()) {
            Some(port) if port != 0 => Some(port),
            _ => self.invalid(&number.to_string(), "a port (1 to 65535)"),
        }
    }

    /// A port as Istio's policies write it: digits in quotes.
    pub(super) fn quoted_port(self) -> Option<u16> {
        let text = self.sibling().text()?;
        match text.parse::<u16>() {
            Ok(port) if port != 0 => Some(port),
            _ => self.invalid(&text, "a port (1 to 65535)"),
        }
    }

    /// A network, or a single address that becomes a network of one.
    pub(super) fn network(self) -> Option<IpNet> {
        let text = self.sibling().text()?;
        let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match parsed {
            Ok(net) if net.trunc() == net => Some(canonical(net)),
            Ok(net) => self.invalid(&text, format!("a network: bits beyond the prefix are set, write {}", net.trunc())),
            Err(_) => self.invalid(&text, "an address or a network such as 10.0.0.0/8"),
        }
    }

    /// A single address that packets can be sent to.
    pub(super) fn address(self) -> Option<IpAddr> {
        let text = self.sibling().text()?;
        match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if !address.is_unspecified() && !address.is_multicast() => Some(address),
            Ok(_) => self.invalid(&text, "an address of one host"),
            Err(_) if text.contains('/') => self.unsupported("a range of addresses; list single ones"),
            Err(_) => self.invalid(&text, "an IPv4 or IPv6 address"),
        }
    }

    /// One of several words.
    pub(super) fn one_of<T: Copy>(self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.sibling().text()?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Some(*meaning),
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.invalid(&text, format!("one of {}", words.join(", ")))
            }
        }
    }

    /// A text that passes a check of [`names`].
    pub(super) fn checked(self, check: names::Check) -> Option<String> {
        let text = self.sibling().text()?;
        match check(&text) {
            Ok(()) => Some(text),
            Err(expected) => self.invalid(&text, expected),
        }
    }

    /// Texts by name, both checked.
    pub(super) fn map(self, key: names::Check, value: names::Check) -> BTreeMap<String, String> {
        let entry = |(name, at): (String, At<'_>)| {
            let text = at.sibling().any_text()?;
            if let Err(expected) = value(&text) {
                return at.invalid(&text, expected);
            }
            Some((name, text))
        };
        self.entries(key).into_iter().filter_map(entry).collect()
    }

    /// Labels as Kubernetes writes them.
    pub(super) fn labels(self) -> BTreeMap<String, String> {
        self.map(names::qualified, names::label_value)
    }

    /// The values of a map whose keys pass the check.
    pub(super) fn entries(self, key: names::Check) -> Vec<(String, At<'a>)> {
        let Value::Object(map) = self.value else { return self.wrong_type("a map").unwrap_or_default() };
        let mut entries = Vec::with_capacity(map.len());
        for (name, value) in map {
            let at = At { value, path: format!("{}[{}]", self.path, shorten(name)), mistakes: self.mistakes };
            match key(name) {
                Ok(()) => entries.push((name.clone(), at)),
                Err(expected) => drop(at.invalid::<()>(name, expected)),
            }
        }
        entries
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_string()
    }

    /// Whether it is exactly this word.
    pub(super) fn is(&self, word: &str) -> bool {
        self.value.as_str() == Some(word)
    }

    pub(super) fn invalid<T>(self, value: &str, expected: impl Into<String>) -> Option<T> {
        let problem = Problem::Invalid { value: shorten(value), expected: expected.into() };
        self.mistakes.report(self.path, problem);
        None
    }

    pub(super) fn duplicate(self, value: &impl ToString) {
        self.mistakes.report(self.path, Problem::Duplicate { value: value.to_string() });
    }

    pub(super) fn unsupported<T>(self, instead: &str) -> Option<T> {
        self.mistakes.report(self.path, Problem::Unsupported { instead: instead.to_owned() });
        None
    }

    /// The same value again, for readers that look at it twice.
    pub(super) fn sibling(&self) -> At<'a> {
        At { value: self.value, path: self.path.clone(), mistakes: self.mistakes }
    }

    fn wrong_type<T>(self, expected: &'static str) -> Option<T> {
        let found = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.mistakes.report(self.path, Problem::Type { expected, found });
        None
    }
}

/// Foreign text in a message stays short enough to read.
fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}
