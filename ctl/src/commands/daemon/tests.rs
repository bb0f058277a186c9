use super::*;

#[test]
fn a_lock_is_seen_while_it_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::at(dir.path());
    assert!(!is_locked(&root), "no file, no daemon");
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let file = File::create(root.daemon_lock()).unwrap();
    assert!(!is_locked(&root));
    file.lock().unwrap();
    assert!(is_locked(&root));
    drop(file);
    assert!(!is_locked(&root));
}
