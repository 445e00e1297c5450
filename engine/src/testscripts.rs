//! Runs golden scripts: `testscripts/FOLDER/*`.

use std::path::PathBuf;

use goldenscript::Runner;

/// Runs every script of the folder, each with a runner of its own.
pub fn run_all<R: Runner + Default>(folder: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testscripts").join(folder);
    let mut scripts: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for script in scripts {
        if let Err(err) = goldenscript::run(&mut R::default(), &script) {
            panic!("{}: {err}", script.display());
        }
    }
}
