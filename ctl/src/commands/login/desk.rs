//! Where this runs, which ways of signing in fit there, and how a browser is opened.
//!
//! A person at a desk wants the browser; over SSH, in a container and without a display the browser
//! is somewhere else, and a short code is the easiest bridge; pasting works everywhere and is last.

use crate::cli::LoginWay;
use cma_proto::login::LoginMethod;
use std::{
    env, io,
    path::Path,
    process::{Command, Stdio},
};

/// One way to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) method: LoginMethod,
    /// Whether we open the browser.
    pub(super) open: bool,
}

impl Way {
    const OPENED: Self = Self { method: LoginMethod::Browser, open: true };
    const PRINTED: Self = Self { method: LoginMethod::Browser, open: false };
    const CODE: Self = Self { method: LoginMethod::Device, open: false };
    const PASTED: Self = Self { method: LoginMethod::Manual, open: false };

    pub(super) const fn method_name(self) -> &'static str {
        match self.method {
            LoginMethod::Browser => "the browser",
            LoginMethod::Device => "a code for another device",
            LoginMethod::Manual => "a pasted address",
        }
    }
}

/// What is known of this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Desk {
    /// `CODEX_AUTH_NO_BROWSER` is set.
    pub(super) no_browser: bool,
    pub(super) place: Place,
}

/// Where a browser is, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On this screen.
    Near,
    /// Somewhere else: SSH, a container, no display, no program that opens one.
    Far,
}

impl Desk {
    pub(super) fn here() -> Self {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let no_browser = env::var("CODEX_AUTH_NO_BROWSER")
            .is_ok_and(|value| !matches!(value.trim(), "" | "0" | "false" | "no"));
        Self { no_browser, place: place(set, |path| Path::new(path).exists(), on_path) }
    }
}

fn place(
    set: impl Fn(&str) -> bool,
    exists: impl Fn(&str) -> bool,
    found: impl Fn(&str) -> bool,
) -> Place {
    let far = ["SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT", "container", "KUBERNETES_SERVICE_HOST"];
    if far.into_iter().any(&set) || ["/.dockerenv", "/run/.containerenv"].into_iter().any(&exists) {
        // A desk can reach into a container: then somebody gave it a display.
        let lent = !far[..3].iter().any(|name| set(name)) && displayed(&set) && found("xdg-open");
        return if lent { Place::Near } else { Place::Far };
    }
    let near = if cfg!(any(target_os = "macos", windows)) {
        true
    } else if wsl(&set) {
        found("wslview") || found("rundll32.exe")
    } else {
        displayed(&set) && found("xdg-open")
    };
    if near { Place::Near } else { Place::Far }
}

fn displayed(set: impl Fn(&str) -> bool) -> bool {
    set("DISPLAY") || set("WAYLAND_DISPLAY")
}

fn wsl(set: impl Fn(&str) -> bool) -> bool {
    set("WSL_DISTRO_NAME") || set("WSL_INTEROP")
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The ways to try, best first. What was asked for is tried alone.
pub(super) fn ways(asked: LoginWay, no_browser: bool, desk: &Desk) -> Vec<Way> {
    let silent = no_browser || desk.no_browser;
    match (asked, desk.place) {
        (LoginWay { device: true, .. }, _) => vec![Way::CODE],
        (LoginWay { manual: true, .. }, _) => vec![Way::PASTED],
        (LoginWay { browser: true, .. }, _) => {
            vec![if silent { Way::PRINTED } else { Way::OPENED }]
        },
        _ if silent => vec![Way::PRINTED, Way::PASTED],
        (_, Place::Near) => vec![Way::OPENED, Way::CODE, Way::PASTED],
        (_, Place::Far) => vec![Way::CODE, Way::PRINTED, Way::PASTED],
    }
}

/// Opens the person's browser at an address, without waiting for it.
///
/// # Errors
/// What was tried and why it failed.
pub(super) fn open(url: &str) -> Result<(), String> {
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return Err("the link is no web address".to_owned());
    }
    let openers: &[(&str, &[&str])] = if cfg!(target_os = "macos") {
        &[("open", &[])]
    } else if cfg!(windows) {
        &[("rundll32", &["url.dll,FileProtocolHandler"])]
    } else if wsl(|name| env::var_os(name).is_some()) {
        // Windows' own opener takes the link as it is; a shell in between would cut it at an `&`.
        &[("wslview", &[]), ("rundll32.exe", &["url.dll,FileProtocolHandler"]), ("xdg-open", &[])]
    } else {
        &[("xdg-open", &[])]
    };
    let mut failed = Vec::new();
    for (program, arguments) in openers {
        match start(program, arguments, url) {
            Ok(()) => return Ok(()),
            Err(error) => failed.push(format!("`{program}`: {error}")),
        }
    }
    Err(failed.join(", "))
}

fn start(program: &str, arguments: &[&str], url: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // Reaped when it ends; whether it succeeded shows in the sign-in itself.
    std::thread::spawn(move || drop(child.wait()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: LoginWay = LoginWay { browser: false, device: false, manual: false };

    fn desk(place: Place) -> Desk {
        Desk { no_browser: false, place }
    }

    #[cfg(all(unix, not(target_os = "macos")))]
    #[test]
    fn a_browser_is_near_where_a_person_sits() {
        let at = |vars: &[&str], files: &[&str], programs: &[&str]| {
            place(|v| vars.contains(&v), |f| files.contains(&f), |p| programs.contains(&p))
        };
        assert_eq!(at(&["DISPLAY"], &[], &["xdg-open"]), Place::Near);
        assert_eq!(at(&["WAYLAND_DISPLAY"], &[], &["xdg-open"]), Place::Near);
        assert_eq!(at(&["WSL_DISTRO_NAME"], &[], &["wslview"]), Place::Near);
        assert_eq!(at(&["WSL_INTEROP"], &[], &["rundll32.exe"]), Place::Near);
        assert_eq!(at(&["DISPLAY"], &["/.dockerenv"], &["xdg-open"]), Place::Near);
        assert_eq!(at(&["DISPLAY"], &[], &[]), Place::Far);
        assert_eq!(at(&[], &[], &["xdg-open"]), Place::Far);
        assert_eq!(at(&["DISPLAY", "SSH_CONNECTION"], &[], &["xdg-open"]), Place::Far);
        assert_eq!(at(&["WSL_DISTRO_NAME"], &[], &[]), Place::Far);
        assert_eq!(at(&[], &["/.dockerenv"], &["xdg-open"]), Place::Far);
    }

    #[test]
    fn what_was_asked_for_is_tried_alone_and_else_the_rest_follows() {
        let only = |way: LoginWay, silent| ways(way, silent, &desk(Place::Far));
        assert_eq!(only(LoginWay { device: true, ..NONE }, false), [Way::CODE]);
        assert_eq!(only(LoginWay { manual: true, ..NONE }, true), [Way::PASTED]);
        assert_eq!(only(LoginWay { browser: true, ..NONE }, false), [Way::OPENED]);
        assert_eq!(only(LoginWay { browser: true, ..NONE }, true), [Way::PRINTED]);
        assert_eq!(ways(NONE, true, &desk(Place::Near)), [Way::PRINTED, Way::PASTED]);
        assert_eq!(ways(NONE, false, &desk(Place::Near)), [Way::OPENED, Way::CODE, Way::PASTED]);
        assert_eq!(ways(NONE, false, &desk(Place::Far)), [Way::CODE, Way::PRINTED, Way::PASTED]);
        let told = Desk { no_browser: true, place: Place::Near };
        assert_eq!(ways(NONE, false, &told), [Way::PRINTED, Way::PASTED]);
    }

    #[test]
    fn only_web_addresses_are_opened() {
        for url in ["file:///etc/passwd", "--help", ""] {
            assert!(open(url).is_err(), "{url}");
        }
    }
}
