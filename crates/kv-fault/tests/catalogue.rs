//! Every drill that is shipped can be read.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file")]

use std::path::Path;

use kv_fault::Drill;

#[test]
fn every_drill_of_the_catalogue_is_sound_and_named_as_its_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../drills");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let drill = Drill::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(path.file_stem().unwrap().to_str(), Some(drill.name.as_str()));
        assert!(drill.runbook.len() > 20 && !drill.expects.is_empty(), "{}", drill.name);
        names.push(drill.name);
    }
    assert!(names.len() >= 18, "{names:?}");
}
