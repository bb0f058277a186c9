//! How everything looks: text or JSON, tables, bars, colour; the only file that writes to stdout
//! and stderr.
//!
//! Text is built as plain strings in which a few invisible characters of width zero mark tones, so
//! that a table can be laid out by width first and coloured afterwards. They become escape codes
//! here, and only where the stream is a terminal and nobody said `NO_COLOR`. Words that come from
//! outside (e-mails, labels, reasons) pass through [`clean`], which leaves neither marks nor
//! control characters: a login can't write escape codes to a person's terminal.

use crate::error::Failure;
use anstream::{AutoStream, ColorChoice};
use cma_proto::error::Refusal;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::Style;
use serde::Serialize;
use std::{
    fmt::{self, Write as _},
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

pub(crate) mod range;
pub(crate) mod time;

/// Appends formatted text to a string.
macro_rules! put {
    ($text:expr, $($arg:tt)*) => { $crate::render::append(&mut $text, format_args!($($arg)*)) };
}
pub(crate) use put;

/// What [`put`] does. Writing to a string can't fail.
pub(crate) fn append(text: &mut String, arguments: fmt::Arguments<'_>) {
    let done = text.write_fmt(arguments);
    debug_assert!(done.is_ok());
}

/// Version of the JSON output. A field may be added; taking one away or changing one raises it.
pub(crate) const SCHEMA: u32 = 1;

/// Ends a tone. U+2060 to U+2064 and U+206A are invisible, of width zero, and in no natural text.
const END: char = '\u{2060}';

/// What a piece of text wants to say. Never the only carrier of a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong, or used up.
    Bad,
    /// Less important than the rest.
    Dim,
    /// More important than the rest.
    Strong,
}

impl Tone {
    const ALL: [Self; 5] = [Self::Good, Self::Warn, Self::Bad, Self::Dim, Self::Strong];

    const fn mark(self) -> char {
        match self {
            Self::Good => '\u{2061}',
            Self::Warn => '\u{2062}',
            Self::Bad => '\u{2063}',
            Self::Dim => '\u{2064}',
            Self::Strong => '\u{206a}',
        }
    }

    fn looks(self) -> Style {
        match self {
            Self::Good => Style::new().green(),
            Self::Warn => Style::new().yellow(),
            Self::Bad => Style::new().red().bold(),
            Self::Dim => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
        }
    }

    /// The text, marked. Text of several lines keeps its tone within each line.
    pub(crate) fn paint(self, text: impl AsRef<str>) -> String {
        let lines: Vec<String> =
            text.as_ref().lines().map(|line| format!("{}{line}{END}", self.mark())).collect();
        lines.join("\n")
    }
}

/// Text from outside without control characters, invisible marks and direction changes.
pub(crate) fn clean(text: &str) -> String {
    let shown = |c: char| match c {
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => None,
        '\u{feff}' => None,
        c if c.is_control() => Some(' '),
        c => Some(c),
    };
    text.chars().filter_map(shown).collect()
}

/// Marked text without its marks.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| *c != END && Tone::ALL.iter().all(|tone| tone.mark() != *c)).collect()
}

/// Marked text with escape codes for its marks.
fn coloured(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        match Tone::ALL.iter().find(|tone| tone.mark() == c) {
            Some(tone) => put!(out, "{}", tone.looks().prefix_formatter()),
            None if c == END => put!(out, "{}", Style::new().bold().suffix_formatter()),
            None => out.push(c),
        }
    }
    out
}

/// A bar of `cells` characters, full at 100.
pub(crate) fn bar(percent: f64, cells: u32) -> String {
    let full = (0..cells).filter(|cell| percent >= f64::from(cell + 1) * 100.0 / f64::from(cells));
    // What was used at all shows as one cell.
    let full = full.count().max(usize::from(percent >= 1.0));
    (0..cells as usize).map(|cell| if cell < full { '█' } else { '░' }).collect()
}

/// The tone of a window that is used this far.
pub(crate) const fn pressure(percent: f64) -> Tone {
    if percent >= 90.0 {
        Tone::Bad
    } else if percent >= 70.0 {
        Tone::Warn
    } else {
        Tone::Good
    }
}

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column<'a> {
    /// Words.
    Left(&'a str),
    /// Numbers.
    Right(&'a str),
}

/// A table without lines; cells may have several lines.
pub(crate) fn table(columns: &[Column<'_>], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| match column {
        Column::Left(name) | Column::Right(name) => Tone::Dim.paint(name),
    }));
    table.add_rows(rows);
    for (index, column) in columns.iter().enumerate() {
        if let Some(laid) = table.column_mut(index) {
            laid.set_padding((0, 2));
            if matches!(column, Column::Right(_)) {
                laid.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

#[derive(Serialize)]
struct Enveloped<'a, T> {
    schema: u32,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Serialize)]
struct Refused<'a> {
    error: &'a Refusal,
}

/// A value as one line of JSON with its schema number.
pub(crate) fn json_line<T: Serialize>(body: &T) -> Result<String, Failure> {
    serde_json::to_string(&Enveloped { schema: SCHEMA, body })
        .map(|text| text + "\n")
        .map_err(|error| Failure::Output(error.into()))
}

/// stdout and stderr of this run.
pub(crate) struct Screen {
    json: bool,
    out: anstream::Stdout,
    err: anstream::Stderr,
}

impl Screen {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, out: anstream::stdout(), err: anstream::stderr() }
    }

    /// Whether the person asked for JSON.
    pub(crate) const fn json(&self) -> bool {
        self.json
    }

    /// A command's answer: the value as JSON, or the text made of it.
    pub(crate) fn answer<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            return self.object(value);
        }
        let text = text(value);
        self.text(&text)
    }

    /// One line of JSON on stdout.
    pub(crate) fn object<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        let line = json_line(value)?;
        self.raw(&line)
    }

    /// Text on stdout that knows no tones.
    pub(crate) fn raw(&mut self, text: &str) -> Result<(), Failure> {
        let out = &mut self.out;
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
    }

    /// Data on stdout, as it is but for the tones.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        let text = coloured(text);
        self.raw(&text)
    }

    /// Talk: one line on stderr, led by a word that says what it is.
    pub(crate) fn say(&mut self, tone: Tone, word: &str, text: &str) -> Result<(), Failure> {
        let line = format!("{} {text}\n", tone.paint(format!("{word}:")));
        self.err.write_all(coloured(&line).as_bytes()).map_err(Failure::Output)
    }

    /// Talk of several lines on stderr; none with `--json`.
    pub(crate) fn talk(&mut self, text: &str) -> Result<(), Failure> {
        if self.json {
            return Ok(());
        }
        self.err.write_all(coloured(text).as_bytes()).map_err(Failure::Output)
    }

    /// Notes of an answer; in JSON they are part of it.
    pub(crate) fn notes(&mut self, notes: &[String]) -> Result<(), Failure> {
        if self.json {
            return Ok(());
        }
        notes.iter().try_for_each(|note| self.say(Tone::Dim, "note", &clean(note)))
    }

    /// A failure on stderr: what and why, then the next command.
    pub(crate) fn refusal(&mut self, refusal: &Refusal) -> Result<(), Failure> {
        if self.json {
            let line = json_line(&Refused { error: refusal })?;
            return self.err.write_all(line.as_bytes()).map_err(Failure::Output);
        }
        self.say(Tone::Bad, "error", &clean(&refusal.message))?;
        match refusal.hint.as_str() {
            "" => Ok(()),
            hint => self.say(Tone::Strong, "hint", &clean(hint)),
        }
    }

    /// Whether a person can be asked.
    pub(crate) fn can_ask(&self) -> bool {
        !self.json && io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Asks a person; anything but a yes is a no.
    pub(crate) fn ask(&mut self, question: &str) -> Result<bool, Failure> {
        let err = &mut self.err;
        write!(err, "{question} [y/N] ").and_then(|()| err.flush()).map_err(Failure::Output)?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(Failure::Output)?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    /// Whether a picture can be redrawn in place on stdout.
    pub(crate) fn can_redraw(&self) -> bool {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        !self.json && !dumb && io::stdout().is_terminal()
    }
}

/// A picture at the end of the output that is drawn again and again; lines may be put above it.
///
/// Dropping it gives the cursor back, whatever happened.
#[derive(Debug)]
pub(crate) struct Picture {
    lines: usize,
    colour: bool,
}

impl Picture {
    pub(crate) fn new() -> Self {
        let colour = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        Self { lines: 0, colour }
    }

    /// Puts `above` where it stays and `frame` under it, in one write.
    pub(crate) fn draw(&mut self, above: &str, frame: &str) -> Result<(), Failure> {
        let paint = if self.colour { coloured } else { plain };
        // Hide the cursor while drawing, don't wrap (a wrapped line would break the count), go to the
        // old picture's first line and clear from there. Between two pictures it is there: whoever ends
        // the program then finds the terminal as it was.
        let mut text = "\x1b[?25l\x1b[?7l".to_owned();
        if self.lines > 0 {
            put!(text, "\x1b[{}F", self.lines);
        }
        text += "\x1b[J";
        text += &paint(above);
        text += &paint(frame);
        text += "\x1b[?7h\x1b[?25h";
        self.lines = frame.lines().count();
        write_stdout(&text).map_err(Failure::Output)
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        drop(write_stdout("\x1b[?25h"));
    }
}

fn write_stdout(text: &str) -> io::Result<()> {
    // Not through anstream: with `NO_COLOR` it would take the cursor movements away too.
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Tells on stderr that something takes long, once it has taken a second.
#[derive(Debug)]
pub(crate) struct Patience {
    since: Instant,
    shown: Option<ProgressBar>,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), shown: None }
    }

    /// To be called now and then with what is being waited for.
    pub(crate) fn tick(&mut self, screen: &mut Screen, what: &str) -> Result<(), Failure> {
        if self.since.elapsed() < Duration::from_secs(1) {
            return Ok(());
        }
        if let Some(shown) = &self.shown {
            shown.set_message(what.to_owned());
            shown.tick();
            return Ok(());
        }
        // A hidden bar off a terminal: there one line is enough.
        let terminal = !screen.json && io::stderr().is_terminal();
        let target =
            if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target)
            .with_style(ProgressStyle::default_spinner())
            .with_message(what.to_owned());
        bar.tick();
        self.shown = Some(bar);
        if terminal || screen.json { Ok(()) } else { screen.say(Tone::Dim, "note", what) }
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        if let Some(shown) = &self.shown {
            shown.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests;
