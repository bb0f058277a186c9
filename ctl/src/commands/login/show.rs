//! What a person reads while they sign in: the notice, the link, the code, large and as a picture.

use super::desk::Way;
use crate::render::{Tone, clean, put};
use cma_proto::login::{LoginMethod, LoginStarted, LoginWaiting};
use qrcodegen::{QrCode, QrCodeEcc};

/// Shown before a root's first sign-in, and never again.
pub(super) const NOTICE: &str = "\
cma is for one person, that person's own accounts and their own machine. By OpenAI's terms an account \
may not be lent or shared, nor its credentials given away, and limits and protective measures may not \
be got round. Whether one person may use several accounts of their own side by side is a question that \
OpenAI has not answered in public. Read https://openai.com/policies and your workspace's rules, and \
decide for yourself. cma is not OpenAI's, hides nothing about the client, and sends no telemetry.";

/// Light modules around the code that readers need.
const QUIET: i32 = 2;

/// The notice, as it is printed.
pub(super) fn notice() -> String {
    let mut text = format!("\n{}\n", Tone::Strong.paint("Before the first sign-in (shown once)"));
    let mut column = 0;
    for word in NOTICE.split(' ') {
        let length = word.chars().count();
        if column + 1 + length > 78 {
            text.push('\n');
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += length;
    }
    text + "\n\n"
}

/// Where to go and what to do there.
pub(super) fn way(started: &LoginStarted, way: Way, picture: bool) -> String {
    let url = clean(&started.url);
    let mut text = String::new();
    match (way.method, way.open) {
        (LoginMethod::Device, _) => {
            let code = clean(started.user_code.as_deref().unwrap_or_default());
            put!(text, "Open this link on any device, sign in, and type the code:\n\n");
            put!(text, "  {}\n\n", Tone::Strong.paint(&url));
            put!(text, "{}\n", large(&code));
            put!(text, "  code: {}\n\n", Tone::Strong.paint(&code));
            if picture && let Some(qr) = qr(&url) {
                put!(text, "{qr}\n");
            }
        },
        (LoginMethod::Browser, true) => {
            put!(text, "The browser opens for the sign-in. If it doesn't, open this link:\n\n");
            put!(text, "  {url}\n\n");
        },
        (LoginMethod::Browser, false) => {
            put!(text, "Open this link in a browser and sign in:\n\n  {url}\n\n");
            put!(
                text,
                "If the browser ends at an address on 127.0.0.1 that doesn't load (it runs on another \
                 machine), copy that address and paste it here.\n"
            );
        },
        (LoginMethod::Manual, _) => {
            put!(text, "Open this link in any browser and sign in:\n\n  {url}\n\n");
            put!(
                text,
                "The browser ends at an address on 127.0.0.1 that doesn't load. That is right: copy \
                 the whole address and paste it here (`q` gives up).\n"
            );
        },
    }
    text
}

/// What is waited for, and how long still.
pub(super) fn waiting(waiting: &LoginWaiting, way: Way) -> String {
    if waiting.stage == "exchange" {
        return "signing in at the issuer".to_owned();
    }
    let what = match way.method {
        LoginMethod::Browser => "waiting for the sign-in in the browser",
        LoginMethod::Device => "waiting for the code to be typed",
        LoginMethod::Manual => "waiting for the address to be pasted",
    };
    let left = waiting.seconds_left;
    format!("{what}, {}:{:02} left (Ctrl-C gives up)", left / 60, left % 60)
}

/// A QR code of half blocks, dark on light whatever the terminal's colours are.
fn qr(text: &str) -> Option<String> {
    let code = QrCode::encode_text(text, QrCodeEcc::Low).ok()?;
    let edge = code.size() + QUIET;
    let mut out = String::new();
    let mut y = -QUIET;
    while y < edge {
        out += "  ";
        for x in -QUIET..edge {
            // Full blocks are the light modules: most terminals are dark.
            out.push(match (code.get_module(x, y), code.get_module(x, y + 1)) {
                (false, false) => '█',
                (false, true) => '▀',
                (true, false) => '▄',
                (true, true) => ' ',
            });
        }
        out.push('\n');
        y += 2;
    }
    Some(out)
}

/// The code in letters five lines high, which are read across a room.
fn large(code: &str) -> String {
    let glyphs: Vec<[u8; 5]> = code.chars().filter_map(glyph).collect();
    let mut out = String::new();
    for row in 0..5 {
        out += "  ";
        for glyph in &glyphs {
            let bits = glyph.get(row).copied().unwrap_or_default();
            for column in [4, 2, 1] {
                out.push(if bits & column == 0 { ' ' } else { '█' });
            }
            out.push(' ');
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

/// Three bits a row, from the top.
fn glyph(c: char) -> Option<[u8; 5]> {
    let rows = match c.to_ascii_uppercase() {
        'A' => 0o25755,
        'B' => 0o65656,
        'C' => 0o34443,
        'D' => 0o65556,
        'E' => 0o74647,
        'F' => 0o74644,
        'G' => 0o34553,
        'H' => 0o55755,
        'I' => 0o72227,
        'J' => 0o11152,
        'K' => 0o55655,
        'L' => 0o44447,
        'M' => 0o57755,
        'N' => 0o65555,
        'O' => 0o25552,
        'P' => 0o65644,
        'Q' => 0o25573,
        'R' => 0o65655,
        'S' => 0o34216,
        'T' => 0o72222,
        'U' => 0o55557,
        'V' => 0o55552,
        'W' => 0o55775,
        'X' => 0o55255,
        'Y' => 0o55222,
        'Z' => 0o71247,
        '0' => 0o75557,
        '1' => 0o26227,
        '2' => 0o71747,
        '3' => 0o71317,
        '4' => 0o55711,
        '5' => 0o74717,
        '6' => 0o74757,
        '7' => 0o71122,
        '8' => 0o75757,
        '9' => 0o75717,
        '-' => 0o00700,
        _ => return None,
    };
    Some([12, 9, 6, 3, 0].map(|shift| u8::try_from((rows >> shift) & 0o7_u32).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_letter_of_a_code_has_its_own_shape() {
        let all = ('A'..='Z').chain('0'..='9').chain(['-']);
        let shapes: Vec<_> = all.map(|c| glyph(c).unwrap()).collect();
        let different: BTreeSet<_> = shapes.iter().collect();
        assert_eq!((shapes.len(), different.len()), (37, 37));
        let shown = large("A-1");
        assert_eq!(shown.lines().count(), 5);
        assert_eq!(shown.lines().next().unwrap(), "   █       █");
        assert_eq!(shown.lines().nth(2).unwrap(), "  ███ ███  █");
    }

    #[test]
    fn the_picture_has_the_modules_of_the_code() {
        let url = "https://auth.openai.com/codex/device";
        let code = QrCode::encode_text(url, QrCodeEcc::Low).unwrap();
        let shown = qr(url).unwrap();
        let rows: Vec<Vec<char>> =
            shown.lines().map(|line| line.chars().skip(2).collect()).collect();
        for y in 0..code.size() {
            for x in 0..code.size() {
                let at = |n: i32| usize::try_from(n + QUIET).unwrap();
                let (row, column) = (at(y), at(x));
                let cell = rows[row / 2][column];
                let light = match row % 2 {
                    0 => matches!(cell, '█' | '▀'),
                    _ => matches!(cell, '█' | '▄'),
                };
                assert_eq!(!light, code.get_module(x, y), "{x},{y}");
            }
        }
    }

    #[test]
    fn the_notice_fits_a_terminal() {
        assert!(notice().lines().all(|line| line.chars().count() <= 80), "{}", notice());
    }
}
