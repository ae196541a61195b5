//! Says things on standard output and standard error.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// Columns of a progress bar.
const BAR: u64 = 30;

/// Who reads what a command says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// People.
    Table,
    /// Scripts.
    Json,
}

/// Prints a text as it is; a closed pipe is the reader's decision, not a failure.
pub(super) fn text(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Prints one line.
pub(super) fn line(line: &str) -> ExitCode {
    text(&format!("{line}\n"))
}

/// Prints a document, for scripts.
pub(super) fn json(document: &impl serde::Serialize) -> ExitCode {
    line(&serde_json::to_string_pretty(document).expect("JSON prints"))
}

/// Prints how far something is, on standard error; on a terminal each line takes the place of the one before.
pub(super) fn progress(line: &str) {
    clear_progress();
    let mut out = std::io::stderr().lock();
    let end = if out.is_terminal() { "" } else { "\n" };
    // nobody left to tell when even this cannot be printed
    write!(out, "{line}{end}").and_then(|()| out.flush()).ok();
}

/// Makes room on a terminal for what is said after the last progress.
pub(super) fn clear_progress() {
    let mut out = std::io::stderr().lock();
    if out.is_terminal() {
        // nobody left to tell when even this cannot be printed
        out.write_all(b"\r\x1b[K").ok();
    }
}

/// Draws how much of `total` is done once `left` is left of it; all of nothing is done.
pub(super) fn bar(left: u64, total: u64) -> String {
    let done = (BAR * (total - left.min(total))).checked_div(total).unwrap_or(BAR);
    (0..BAR).map(|at| if at < done { '#' } else { '.' }).collect()
}

/// Prints an error with its causes, and returns the exit code.
pub(super) fn failure(error: &dyn Error, code: u8) -> ExitCode {
    let mut whole = format!("rafthold: {error}");
    let mut cause = error.source();
    while let Some(source) = cause {
        whole.push_str(": ");
        whole.push_str(source.to_string().trim_end());
        cause = source.source();
    }
    complain(&whole);
    ExitCode::from(code)
}

/// Prints one line on standard error.
pub(super) fn complain(line: &str) {
    // nobody left to tell when even this cannot be printed
    writeln!(std::io::stderr().lock(), "{line}").ok();
}

/// Lays rows out in columns of equal width.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [["id", "name"], ["12", "a"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(super::table(&rows), "id  name\n12  a\n");
    }
}
