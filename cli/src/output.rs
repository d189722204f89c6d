//! How answers are printed: tables for people, YAML and JSON for programs. Used by every command,
//! those of the host included.
//!
//! Standard output holds the answer and nothing else; notes and warnings go to standard error.
//! Colours only where both end at a terminal that wants them (anstream decides).

use std::io::{self, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};
use comfy_table::{Cell, ColumnConstraint, Width, presets};
use owo_colors::OwoColorize;
use serde::Serialize;

/// `-o` and `--json`, which every command takes.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputArgs {
    /// How to print the answer: table for people (the default), wide with more columns, yaml, json
    #[arg(short, long, value_enum, global = true, value_name = "FORMAT", hide_possible_values = true)]
    output: Option<Output>,
    /// The same as -o json
    #[arg(long, global = true, conflicts_with = "output")]
    json: bool,
}

/// A form of the answer. The variants have no text of their own, so that help lists them in a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Table,
    Wide,
    Yaml,
    Json,
}

/// Rows under a header, in columns as wide as their content.
#[derive(Debug, Default)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// Column widths of what was printed before.
#[derive(Debug, Default)]
pub(crate) struct Widths(Vec<u16>);

impl OutputArgs {
    pub(crate) fn choice(self) -> Output {
        if self.json { Output::Json } else { self.output.unwrap_or_default() }
    }
}

impl Output {
    /// Whether the answer is for a program.
    pub(crate) fn is_structured(self) -> bool {
        matches!(self, Self::Yaml | Self::Json)
    }

    /// Prints an answer: the value itself, or the text made of it for people.
    pub(crate) fn show<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        match self {
            Self::Table | Self::Wide => print(&text()),
            Self::Yaml => print(&yaml(value)?),
            Self::Json => {
                let json = serde_json::to_string_pretty(value).context("the answer cannot be written as JSON")?;
                print(&format!("{json}\n"))
            }
        }
    }
}

impl Table {
    pub(crate) fn new(header: impl Into<Vec<&'static str>>) -> Self {
        Self { header: header.into(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, row: impl Into<Vec<String>>) {
        self.rows.push(row.into());
    }

    /// The whole table; empty without rows.
    pub(crate) fn render(&self) -> String {
        self.render_after(&mut Widths::default())
    }

    /// The table, or only its rows when others went before it: in columns at least as wide as theirs.
    pub(crate) fn render_after(&self, widths: &mut Widths) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        let first = widths.0.is_empty();
        table.set_header(self.header.iter().map(Cell::new));
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { printable(cell) }));
        }
        let mut needed = table.column_max_content_widths();
        for (needed, before) in needed.iter_mut().zip(&widths.0) {
            *needed = (*needed).max(*before);
        }
        for (column, width) in table.column_iter_mut().zip(&needed) {
            column.set_padding((0, 3));
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(*width + 3)));
        }
        widths.0 = needed;
        let text = table.trim_fmt();
        match text.split_once('\n') {
            Some((header, rows)) if first => format!("{}\n{rows}\n", header.bold()),
            Some((_, rows)) => format!("{rows}\n"),
            None => format!("{text}\n"),
        }
    }
}

pub(crate) fn yaml<T: Serialize>(value: &T) -> anyhow::Result<String> {
    let text = serde_saphyr::to_string(value).context("the answer cannot be written as YAML")?;
    Ok(if text.ends_with('\n') { text } else { format!("{text}\n") })
}

/// Text of others without what would move a terminal's cursor or colour it.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The same for text of several lines.
fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write the answer"),
        _ => Ok(()),
    }
}

/// A remark beside the answer.
pub(crate) fn note(text: &str) {
    anstream::eprintln!("{}", printable_lines(text));
}

/// Something that is probably not meant.
pub(crate) fn warn(text: &str) {
    anstream::eprintln!("{} {}", "warning:".yellow().bold(), printable_lines(text));
}

/// Why the command failed.
pub(crate) fn error(text: &str) {
    anstream::eprintln!("{} {}", "error:".red().bold(), printable_lines(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_holds_no_control_characters() {
        let mut table = Table::new(["NAME", "ADDRESS"]);
        table.row(["orders".to_owned(), "240.240.0.1".to_owned()]);
        table.row(["\u{1b}[2Jx".to_owned(), String::new()]);
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        assert_eq!(plain, "NAME     ADDRESS\norders   240.240.0.1\n\u{fffd}[2Jx    -\n");
        assert_eq!(Table::new(["NAME"]).render(), "");
    }

    #[test]
    fn yaml_is_what_people_write() {
        let value = serde_json::json!({"spec": {"action": "DENY", "ports": ["80"], "empty": {}}});
        let text = yaml(&value).expect("plain data");
        assert!(text.contains("spec:\n  action: DENY\n"), "{text}");
        assert!(text.contains("\"80\"") || text.contains("'80'"), "a text that looks like a number: {text}");
    }
}
