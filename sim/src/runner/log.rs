//! The log of a worker as it comes: all of it in one file, and what each node said in a file of its own beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::run::log::node_of;

/// See the module. What cannot be written is left out: a full disk must not turn a found bug into a lost one.
#[derive(Debug)]
pub struct LogFiles {
    path: PathBuf,
    all: File,
    nodes: BTreeMap<String, File>,
    /// The line that is not whole yet.
    line: Vec<u8>,
    /// Who said the line before: what is no line of a log goes on with it.
    last: Option<String>,
}

/// The file beside the log that has what `node` said.
pub fn node_file(log: &Path, node: &str) -> PathBuf {
    log.with_file_name(format!("{node}.log"))
}

impl LogFiles {
    /// An empty log at `path`.
    pub fn create(path: &Path) -> Result<LogFiles, String> {
        let all = File::create(path).map_err(|err| format!("{} cannot be written: {err}", path.display()))?;
        let (path, nodes) = (path.to_path_buf(), BTreeMap::new());
        Ok(LogFiles { path, all, nodes, line: Vec::new(), last: None })
    }

    /// Adds what came.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.all.write_all(bytes);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Some(node) = node_of(&String::from_utf8_lossy(&line)) {
            // Only nodes: a name becomes the name of a file.
            let is_node = node.strip_prefix('n').is_some_and(|number| number.parse::<u32>().is_ok());
            self.last = is_node.then(|| node.to_string());
        }
        let Some(node) = &self.last else { return };
        if !self.nodes.contains_key(node)
            && let Ok(file) = File::create(node_file(&self.path, node))
        {
            self.nodes.insert(node.clone(), file);
        }
        if let Some(file) = self.nodes.get_mut(node) {
            let _ = file.write_all(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_its_lines_and_those_that_go_on_with_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.txt");
        let text = "said before\n    1.000000 n1 DEBUG a: one\n  goes on\n    1.000001 n12 INFO b: two\n\
                    1.000002 harness INFO c: three\n  and on\n1.1 n/../x INFO d: four\n    2.000000 n1 DEBUG a: five\n";
        let mut files = LogFiles::create(&path).unwrap();
        // However it is cut.
        text.as_bytes().chunks(7).for_each(|piece| files.write(piece));
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), text);
        let n1 = "    1.000000 n1 DEBUG a: one\n  goes on\n    2.000000 n1 DEBUG a: five\n";
        assert_eq!(read(&node_file(&path, "n1")), n1);
        assert_eq!(read(&node_file(&path, "n12")), "    1.000001 n12 INFO b: two\n");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
