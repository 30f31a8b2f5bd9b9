//! Folders under construction: there as a whole or not at all.

use std::fs;
use std::path::Path;

use fastsparse_checkpoint::{Error, Folder};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn it_appears_when_it_is_finished() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("x");
    let folder = Folder::create(&target, false, 0o755).unwrap();
    assert_eq!(names(place.path()), [".x.partial"]);
    fs::write(folder.path().join("a"), "1").unwrap();
    folder.finish().unwrap();
    assert_eq!(names(place.path()), ["x"]);
    assert_eq!(names(&target), ["a"]);
}

#[test]
fn dropped_it_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let folder = Folder::create(&place.path().join("x"), false, 0o755).unwrap();
    fs::create_dir(folder.path().join("deep")).unwrap();
    drop(folder);
    assert!(names(place.path()).is_empty());
}

#[test]
fn an_existing_target_is_exchanged_only_when_asked_for() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("x");
    let late = Folder::create(&target, false, 0o755).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("old"), "").unwrap();
    assert!(matches!(late.finish(), Err(Error::Exists)));
    assert!(matches!(Folder::create(&target, false, 0o755), Err(Error::Exists)));
    assert_eq!(names(&target), ["old"]);
    let folder = Folder::create(&target, true, 0o755).unwrap();
    fs::write(folder.path().join("new"), "").unwrap();
    folder.finish().unwrap();
    assert_eq!(names(&target), ["new"]);
    assert_eq!(names(place.path()), ["x"]);
    fs::write(place.path().join("file"), "").unwrap();
    assert!(matches!(Folder::create(&place.path().join("file"), true, 0o755), Err(Error::NotAFolder)));
}

#[test]
fn a_second_run_is_refused_and_of_what_a_killed_one_left_stays_what_is_named() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("x");
    let folder = Folder::create(&target, false, 0o755).unwrap();
    assert!(matches!(Folder::create(&target, false, 0o755), Err(Error::Busy)));
    drop(folder);
    // A killed run does not remove its folder, as dropping it under its name would.
    let left = place.path().join("aside");
    let killed = Folder::create(&target, false, 0o755).unwrap();
    fs::rename(killed.path(), &left).unwrap();
    drop(killed);
    fs::create_dir(left.join("deep")).unwrap();
    for name in ["file", "shard", "deep/shard"] {
        fs::write(left.join(name), "").unwrap();
    }
    fs::rename(&left, place.path().join(".x.partial")).unwrap();
    let folder = Folder::create(&target, false, 0o755).unwrap();
    folder.retain(&["shard".into(), "deep".into()].into()).unwrap();
    assert_eq!(names(folder.path()), ["shard"]);
}

#[test]
fn a_file_or_a_link_under_the_temporary_name_stays() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join(".x.partial"), "theirs").unwrap();
    let created = Folder::create(&place.path().join("x"), false, 0o755);
    assert!(matches!(created, Err(Error::InTheWay { .. })));
    assert_eq!(fs::read(place.path().join(".x.partial")).unwrap(), b"theirs");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(".", place.path().join(".y.partial")).unwrap();
        assert!(matches!(Folder::create(&place.path().join("y"), false, 0o755), Err(Error::InTheWay { .. })));
    }
}

#[cfg(unix)]
#[test]
fn it_is_private_until_it_gets_its_mode_and_keeps_nothing_that_others_could_reach() {
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().unwrap();
    let (target, left) = (place.path().join("x"), place.path().join(".x.partial"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    fs::create_dir(&left).unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o770)).unwrap();
    fs::write(left.join("theirs"), "").unwrap();
    let folder = Folder::create(&target, false, 0o750).unwrap();
    assert!(names(folder.path()).is_empty());
    assert_eq!(mode(folder.path()), 0o700);
    folder.finish().unwrap();
    assert_eq!(mode(&target), 0o750);
}
