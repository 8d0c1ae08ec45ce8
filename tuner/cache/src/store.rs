//! A directory of records: a set that only grows.

use crate::{Error, Record};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Largest file that is read.
pub const MAX_RECORD_BYTES: u64 = 1 << 20;
const EXTENSION: &str = "json";

/// Records as files `DIGEST.json`. Writers may work side by side: a file appears whole or not at all, and two that write one record write the same
/// bytes. Files of other names are nobody's business.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The store in `dir`, which is made when something is added.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a record: beside its place, synced, renamed. Its digest.
    pub fn add(&self, record: &Record) -> Result<String, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let digest = record.digest();
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!("{digest}.{}-{unique}.partial", std::process::id()));
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let mut file = File::create(&temporary)?;
            file.write_all(record.to_json().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, self.dir.join(format!("{digest}.{EXTENSION}")))?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&temporary); // what is left of it is no record
            Error::Io { path: self.dir.clone(), source }
        })?;
        Ok(digest)
    }

    /// All records with their digests, ascending.
    ///
    /// Errors: the directory cannot be read; a file in it is no record, or not the one of its name.
    pub fn read(&self) -> Result<Vec<(String, Record)>, Error> {
        let io = |path: &Path, source| Error::Io { path: path.to_owned(), source };
        let mut paths = vec![];
        for entry in fs::read_dir(&self.dir).map_err(|e| io(&self.dir, e))? {
            let path = entry.map_err(|e| io(&self.dir, e))?.path();
            if path.extension().is_some_and(|e| e == EXTENSION) {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().map(|path| read_record(path)).collect()
    }
}

fn read_record(path: &Path) -> Result<(String, Record), Error> {
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let mut bytes = vec![];
    file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_RECORD_BYTES {
        return Err(damaged(format!("a record has at most {MAX_RECORD_BYTES} bytes")));
    }
    let record = Record::from_json(&bytes).map_err(damaged)?;
    let (digest, name) = (blake3::hash(&bytes).to_string(), path.file_stem().unwrap_or_default().to_string_lossy());
    if name != digest {
        return Err(damaged(format!("its bytes have the digest {digest}, which should be its name")));
    }
    Ok((digest, record))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::record::tests::example;

    fn numbered(threads: u32) -> Record {
        let mut record = example();
        record.key.threads = threads;
        record
    }

    #[test]
    fn a_set_that_grows() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(&dir.path().join("records"));
        assert!(matches!(store.read(), Err(Error::Io { .. })));
        let digests: Vec<String> = (1..4).map(|n| store.add(&numbered(n)).unwrap()).collect();
        assert_eq!(store.add(&numbered(2)).unwrap(), digests[1], "once more is once");
        let read = store.read().unwrap();
        assert_eq!(read.len(), 3);
        assert!(read.is_sorted_by_key(|(digest, _)| digest.clone()));
        assert!(read.iter().all(|(digest, r)| *digest == r.digest()));
    }

    #[test]
    fn stores_are_merged_by_copying() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let stores = dirs.each_ref().map(|d| Store::new(d.path()));
        for n in 1..5 {
            stores[n as usize % 2].add(&numbered(n)).unwrap();
        }
        stores[1].add(&numbered(2)).unwrap();
        for entry in fs::read_dir(stores[1].dir()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, stores[0].dir().join(path.file_name().unwrap())).unwrap();
        }
        assert_eq!(stores[0].read().unwrap().len(), 4);
    }

    #[test]
    fn files_that_are_no_records() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let digest = store.add(&example()).unwrap();
        fs::write(dir.path().join("README"), "not ours").unwrap();
        fs::write(dir.path().join(format!("{digest}.1-1.partial")), "left by a writer that was killed").unwrap();
        assert_eq!(store.read().unwrap().len(), 1);

        let path = dir.path().join(format!("{digest}.json"));
        let text = fs::read_to_string(&path).unwrap();
        let error = |text: &str| {
            fs::write(&path, text).unwrap();
            let error = store.read().unwrap_err();
            assert!(matches!(&error, Error::Damaged { path: p, .. } if *p == path), "{error}");
            error.to_string()
        };
        assert!(error(&text[..text.len() / 2]).contains("EOF while parsing"), "torn");
        assert!(error("").contains("line 1"));
        assert!(error(&numbered(7).to_json()).contains("which should be its name"));
        assert!(error(&" ".repeat((MAX_RECORD_BYTES + 1) as usize)).contains("at most 1048576 bytes"));
    }

    #[test]
    fn writers_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        std::thread::scope(|s| {
            for first in 0..4 {
                let store = &store;
                s.spawn(move || (0..8).for_each(|n| drop(store.add(&numbered(1 + (first + n) % 8)).unwrap())));
            }
        });
        assert_eq!(store.read().unwrap().len(), 8);
        let others =
            fs::read_dir(dir.path()).unwrap().filter(|e| e.as_ref().unwrap().path().extension().unwrap() != "json");
        assert_eq!(others.count(), 0, "no temporary file is left");
    }
}
