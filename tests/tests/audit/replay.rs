//! Replays an audit trail on an empty directory.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use cluster_tests::content::sha256;
use serde_json::Value;

/// The contents that each session has sent with STOR, STOU and APPE, in order.
pub(crate) type Sent = HashMap<String, Vec<Vec<u8>>>;

/// A directory, and the records that were applied to it.
pub(crate) struct Replay<'s> {
    root: PathBuf,
    sent: &'s Sent,
    /// Number of uploads of each session so far.
    uploads: HashMap<String, usize>,
    /// Number of applied records of each kind.
    pub(crate) applied: BTreeMap<String, usize>,
}

impl<'s> Replay<'s> {
    pub(crate) fn new(root: &Path, sent: &'s Sent) -> Self {
        Self { root: root.to_owned(), sent, uploads: HashMap::new(), applied: BTreeMap::new() }
    }

    /// Applies the records of a trail in the order of their times.
    pub(crate) fn apply(&mut self, mut records: Vec<Value>) {
        records.sort_by(|a, b| a["time"].as_str().cmp(&b["time"].as_str()));
        for record in records {
            if let Err(error) = self.apply_one(&record) {
                panic!("the tree contradicts the trail: {error}\n{record}");
            }
        }
    }

    fn apply_one(&mut self, record: &Value) -> std::io::Result<()> {
        let event = record["event"].as_str().unwrap();
        let is_ok = record["result"] == "ok";
        if matches!(event, "upload" | "append") {
            return self.upload(record, is_ok);
        }
        if !is_ok || record["path"].is_null() {
            return Ok(());
        }
        let path = self.place(record, "path");
        match event {
            "mkdir" => fs::create_dir(&path)?,
            "rmdir" => fs::remove_dir(&path)?,
            "remove_tree" => fs::remove_dir_all(&path)?,
            "delete" => fs::remove_file(&path)?,
            "rename" => fs::rename(&path, self.place(record, "new_path"))?,
            "combine" => {
                let mut target = OpenOptions::new().append(true).create(true).open(&path)?;
                for source in record["sources"].as_array().unwrap() {
                    let source = self.place(source, "path");
                    target.write_all(&fs::read(&source)?)?;
                    fs::remove_file(&source)?;
                }
            }
            _ => return Ok(()),
        }
        *self.applied.entry(event.to_owned()).or_default() += 1;
        Ok(())
    }

    /// A complete upload, or one that broke off: in direct mode the bytes that arrived are in the file.
    fn upload(&mut self, record: &Value, is_ok: bool) -> std::io::Result<()> {
        let session = record["session"].as_str().unwrap();
        let number = self.uploads.entry(session.to_owned()).or_default();
        let content = &self.sent[session][*number];
        *number += 1;
        let bytes = usize::try_from(record["bytes"].as_u64().unwrap_or(0)).unwrap();
        if bytes == 0 && !is_ok {
            return Ok(());
        }
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).open(self.place(record, "path"))?;
        let offset = record["offset"].as_u64().unwrap();
        file.set_len(offset)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(&content[..bytes])?;
        if is_ok {
            assert_eq!(bytes, content.len(), "{record}");
            let is_new = record["event"] == "upload" && offset == 0;
            let expected = is_new.then(|| sha256(content));
            assert_eq!(record["sha256"].as_str(), expected.as_deref(), "{record}");
        }
        let kind = if is_ok { "upload" } else { "broken upload" };
        *self.applied.entry(kind.to_owned()).or_default() += 1;
        Ok(())
    }

    fn place(&self, record: &Value, field: &str) -> PathBuf {
        let bytes = match record[format!("{field}_hex")].as_str() {
            Some(hex) => hex::decode(hex).unwrap(),
            None => record[field].as_str().unwrap().as_bytes().to_vec(),
        };
        self.root.join(OsStr::from_bytes(bytes.strip_prefix(b"/").unwrap()))
    }
}

/// Each path below `root` with the size and hash of its file; `None` for a directory. Hidden files of
/// unfinished uploads are left out.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Option<(u64, String)>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let within = path.strip_prefix(root).unwrap().to_owned();
            if path.is_dir() {
                found.insert(within, None);
                pending.push(path);
            } else if !path.file_name().unwrap().as_bytes().starts_with(b".ftpd-") {
                let mut content = Vec::new();
                File::open(&path).unwrap().read_to_end(&mut content).unwrap();
                found.insert(within, Some((content.len() as u64, sha256(&content))));
            }
        }
    }
    found
}
