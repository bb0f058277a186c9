use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A folder of this test's own, gone at its end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("cma-shim-version-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        #[cfg(unix)]
        write_by_another(&path, text);
        #[cfg(not(unix))]
        fs::write(&path, text).unwrap();
        path
    }

    fn version(&self, codex: &Path) -> String {
        let cache = self.0.join("cache").into_os_string();
        let lookup = |name: &str| (name == "XDG_CACHE_HOME").then(|| cache.clone());
        of(codex, &Guard::read(&lookup, std::process::id(), 0), &lookup)
    }

    fn cached(&self) -> String {
        fs::read_to_string(self.0.join("cache/cma/codex-version")).unwrap_or_default()
    }
}

/// A program that this process has written itself can't always be started: what another test's thread forks
/// meanwhile holds the file open for writing until it has become its own program.
#[cfg(unix)]
fn write_by_another(path: &Path, text: &str) {
    use std::io::Write as _;
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"]).arg(path);
    let mut writer = writer.stdin(Stdio::piped()).spawn().unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A script that says a version and counts how often it was asked.
#[cfg(unix)]
fn script(place: &Place, version: &str) -> String {
    let count = place.0.join("asked");
    format!("#!/bin/sh\necho x >> '{}'\necho codex-cli {version}\n", count.display())
}

#[cfg(unix)]
fn asked(place: &Place) -> usize {
    fs::read_to_string(place.0.join("asked")).unwrap_or_default().lines().count()
}

#[test]
fn numbers() {
    for (text, want) in [
        ("0.169.0", Some("0.169.0")),
        ("0.169.0_1", Some("0.169.0")),
        ("0.170.0-alpha.3", Some("0.170.0")),
        ("codex-cli", None),
        ("0.169", None),
        ("0.169.0.1", None),
        ("0.169.", None),
        ("99999999999.0.0", None),
        ("", None),
    ] {
        assert_eq!(number(text).as_deref(), want, "`{text}`");
    }
}

#[cfg(unix)]
#[test]
fn npm_says_it_in_its_package() {
    let place = Place::new();
    let launcher = place.write("lib/node_modules/@openai/codex/bin/codex.js", "not run");
    place.write(
        "lib/node_modules/@openai/codex/package.json",
        "{\n  \"name\" : \"@openai/codex\",\n  \"version\": \"0.169.0\"\n}",
    );
    fs::create_dir_all(place.0.join("bin")).unwrap();
    let link = place.0.join("bin/codex");
    std::os::unix::fs::symlink(launcher, &link).unwrap();
    assert_eq!(place.version(&link), "0.169.0");
    assert_eq!(place.cached(), "");
}

#[test]
fn homebrew_says_it_in_its_path() {
    for (path, want) in [
        ("/opt/homebrew/Cellar/codex/0.169.0/bin/codex", Some("0.169.0")),
        ("/opt/homebrew/Cellar/codex/0.169.0_1/bin/codex", Some("0.169.0")),
        ("/opt/homebrew/Caskroom/codex/0.158.0/codex-aarch64-apple-darwin", Some("0.158.0")),
        ("/opt/homebrew/Cellar/codex/HEAD-1/bin/codex", None),
        ("/opt/homebrew/bin/codex", None),
    ] {
        assert_eq!(cellar(Path::new(path)).as_deref(), want, "`{path}`");
    }
}

#[cfg(unix)]
#[test]
fn others_are_asked_once() {
    let place = Place::new();
    let codex = place.write("codex", &script(&place, "0.149.0"));
    assert_eq!(place.version(&codex), "0.149.0");
    assert_eq!(place.version(&codex), "0.149.0");
    assert_eq!(asked(&place), 1);
    // Another file under the same path is another CLI.
    let other = place.write("fresh", &script(&place, "0.169.0 "));
    fs::rename(other, &codex).unwrap();
    assert_eq!(place.version(&codex), "0.169.0");
    assert_eq!(place.version(&codex), "0.169.0");
    assert_eq!(asked(&place), 2);
    assert_eq!(place.cached().lines().count(), 2);
}

#[cfg(unix)]
#[test]
fn a_script_is_asked_again_after_a_while() {
    let place = Place::new();
    let codex = place.write("codex", &script(&place, "0.149.0"));
    assert_eq!(place.version(&codex), "0.149.0");
    let old = place.cached();
    let (_at, rest) = old.split_once('\t').unwrap();
    place.write("cache/cma/codex-version", &format!("1000\t{rest}"));
    assert_eq!(place.version(&codex), "0.149.0");
    assert_eq!(asked(&place), 2);
    assert_eq!(place.cached().lines().count(), 1);
}

#[cfg(unix)]
#[test]
fn a_damaged_cache_is_no_cache() {
    let place = Place::new();
    let codex = place.write("codex", &script(&place, "0.149.0"));
    place.write("cache/cma/codex-version", "\u{0}\t\n\t\t\t\nx\ty\tz");
    assert_eq!(place.version(&codex), "0.149.0");
}

#[test]
fn few_answers_are_kept() {
    let place = Place::new();
    let cache = place.0.join("cache");
    for n in 0..20 {
        let known = read(&cache).unwrap_or_default();
        keep(&cache, &known, &format!("key{n}"), Duration::from_secs(n), "0.1.0");
    }
    let known = read(&cache).unwrap();
    assert_eq!(known.lines().count(), KEPT);
    assert_eq!(recall(&known, "key19"), Some((Duration::from_secs(19), "0.1.0")));
    assert_eq!(recall(&known, "key1"), None);
    assert_eq!(recall(&known, "9"), None);
}

#[cfg(unix)]
#[test]
fn a_cli_that_says_nothing_has_no_version() {
    let place = Place::new();
    for text in ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho hello\n", "no program"] {
        let codex = place.write("codex", text);
        assert_eq!(place.version(&codex), "", "`{text}`");
    }
    assert_eq!(place.version(&place.0.join("nothing")), "");
    assert_eq!(place.cached(), "");
}

#[cfg(unix)]
#[test]
fn a_cli_that_hangs_is_not_waited_for() {
    let place = Place::new();
    let codex = place.write("codex", "#!/bin/sh\nexec sleep 30\n");
    let lookup = |_: &str| None;
    let guard = Guard::read(&lookup, std::process::id(), 0);
    let begun = SystemTime::now();
    assert_eq!(ask(&codex, &guard, &lookup, Duration::from_millis(100)), None);
    assert!(begun.elapsed().unwrap() < Duration::from_secs(10));
}
