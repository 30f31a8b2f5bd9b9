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
    let folder = Folder::create(&target, false).unwrap();
    assert_eq!(names(place.path()), [".x.partial"]);
    fs::write(folder.path().join("a"), "1").unwrap();
    folder.finish().unwrap();
    assert_eq!(names(place.path()), ["x"]);
    assert_eq!(names(&target), ["a"]);
}

#[test]
fn dropped_it_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let folder = Folder::create(&place.path().join("x"), false).unwrap();
    fs::create_dir(folder.path().join("deep")).unwrap();
    drop(folder);
    assert!(names(place.path()).is_empty());
}

#[test]
fn an_existing_target_is_exchanged_only_when_asked_for() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("x");
    let late = Folder::create(&target, false).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("old"), "").unwrap();
    assert!(matches!(late.finish(), Err(Error::Exists)));
    assert!(matches!(Folder::create(&target, false), Err(Error::Exists)));
    assert_eq!(names(&target), ["old"]);
    let folder = Folder::create(&target, true).unwrap();
    fs::write(folder.path().join("new"), "").unwrap();
    folder.finish().unwrap();
    assert_eq!(names(&target), ["new"]);
    assert_eq!(names(place.path()), ["x"]);
    fs::write(place.path().join("file"), "").unwrap();
    assert!(matches!(Folder::create(&place.path().join("file"), true), Err(Error::NotAFolder)));
}

#[test]
fn a_second_run_is_refused_and_of_what_a_killed_one_left_stays_what_is_named() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("x");
    let folder = Folder::create(&target, false).unwrap();
    assert!(matches!(Folder::create(&target, false), Err(Error::Busy)));
    drop(folder);
    fs::create_dir_all(place.path().join(".x.partial/deep")).unwrap();
    for name in ["file", "shard", "deep/shard"] {
        fs::write(place.path().join(".x.partial").join(name), "").unwrap();
    }
    let folder = Folder::create(&target, false).unwrap();
    folder.retain(&["shard".into(), "deep".into()].into()).unwrap();
    assert_eq!(names(folder.path()), ["shard"]);
}

#[test]
fn a_file_or_a_link_under_the_temporary_name_stays() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join(".x.partial"), "theirs").unwrap();
    let created = Folder::create(&place.path().join("x"), false);
    assert!(matches!(created, Err(Error::InTheWay { .. })));
    assert_eq!(fs::read(place.path().join(".x.partial")).unwrap(), b"theirs");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(".", place.path().join(".y.partial")).unwrap();
        assert!(matches!(Folder::create(&place.path().join("y"), false), Err(Error::InTheWay { .. })));
    }
}
