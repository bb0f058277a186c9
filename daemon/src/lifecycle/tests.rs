use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// A hand-over that fails makes the old daemon write its name again, while clients read it.
#[test]
fn a_lock_that_is_signed_again_always_names_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::at(folder.path());
    std::fs::create_dir_all(root.daemon_lock().parent().unwrap()).unwrap();
    // What a holder with another way of writing left there.
    std::fs::write(root.daemon_lock(), "4294967295 and more\n").unwrap();
    let held = hold(&root).unwrap();
    let own = std::process::id().to_string();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) || looks == 0 {
                assert_eq!(std::fs::read_to_string(root.daemon_lock()).unwrap().trim(), own);
                looks += 1;
            }
        });
        for _ in 0..20_000 {
            held.sign().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    let second = hold(&root).unwrap_err();
    assert!(second.refusal.message.contains(&format!("(pid {own})")), "{}", second.refusal.message);
}
