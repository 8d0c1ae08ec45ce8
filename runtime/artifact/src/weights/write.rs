//! Streams tensors into their files.

use super::{FileLayout, TENSOR_ALIGN, WeightDecl};
use crate::Error;
use crate::manifest::{WeightFile, WeightTensor};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes tensors in the order of their declarations, in chunks of any size; digests are computed on the way.
///
/// Memory does not depend on the size of the tensors.
#[derive(Debug)]
pub struct WeightsWriter<'a> {
    dir: &'a Path,
    weights: &'a [WeightDecl],
    files: Vec<FileLayout>,
    done: &'a mut Vec<WeightFile>,
    stop: &'a AtomicBool,
    open: Option<(PathBuf, BufWriter<File>)>,
    hasher: blake3::Hasher,
    /// The tensor being written, and how much of it was.
    tensor: usize,
    written: u64,
}

impl<'a> WeightsWriter<'a> {
    pub(crate) fn new(
        dir: &'a Path,
        weights: &'a [WeightDecl],
        files: Vec<FileLayout>,
        done: &'a mut Vec<WeightFile>,
        stop: &'a AtomicBool,
    ) -> Self {
        let hasher = blake3::Hasher::new();
        Self { dir, weights, files, done, stop, open: None, hasher, tensor: 0, written: 0 }
    }

    /// Appends bytes to tensor `index`, which is the one that was written last or the one after it.
    ///
    /// Errors: disk full, interrupted; [`Error::Bug`] where order or size differ from the declarations.
    pub fn append(&mut self, index: usize, bytes: &[u8]) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let declared = self
            .weights
            .get(self.tensor)
            .filter(|w| index == self.tensor && self.written + bytes.len() as u64 <= w.bytes);
        let Some(declared) = declared.map(|w| w.bytes) else {
            let name = self.weights.get(index).map_or("", |w| &w.name);
            let (tensor, written, n) = (self.tensor, self.written, bytes.len());
            return Err(Error::Bug(format!(
                "{n} bytes for weight {index} {name} at byte {written} of weight {tensor}"
            )));
        };
        if self.written == 0 {
            self.start_file()?;
        }
        self.put(bytes)?;
        self.written += bytes.len() as u64;
        if self.written == declared { self.end_tensor() } else { Ok(()) }
    }

    /// Opens the file of the next tensor if it starts there.
    fn start_file(&mut self) -> Result<(), Error> {
        let Some(layout) = self.files.iter().find(|f| f.tensors.start == self.tensor) else { return Ok(()) };
        let path = self.dir.join(&layout.file);
        let file = File::create(&path).map_err(|e| Error::io(&path, "create", e))?;
        reserve(&file, layout.bytes).map_err(|e| Error::io(&path, "reserve space", e))?;
        let mut out = BufWriter::with_capacity(1 << 18, file);
        out.write_all(&layout.header).map_err(|e| Error::io(&path, "write", e))?;
        self.done.push(WeightFile {
            file: layout.file.clone(),
            bytes: layout.bytes,
            header_bytes: layout.header.len() as u64,
            header_blake3: blake3::hash(&layout.header).to_string(),
            tensors: vec![],
        });
        self.open = Some((path, out));
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let (path, out) = self.open.as_mut().expect("start_file opened the file of this tensor");
        self.hasher.update(bytes);
        out.write_all(bytes).map_err(|e| Error::io(path, "write", e))
    }

    fn end_tensor(&mut self) -> Result<(), Error> {
        let pad = self.written.next_multiple_of(TENSOR_ALIGN) - self.written;
        self.put(&[0; TENSOR_ALIGN as usize][..pad as usize])?;
        let w = &self.weights[self.tensor];
        let tensor = WeightTensor {
            name: w.name.clone(),
            elements: w.elements.clone(),
            blake3: self.hasher.finalize().to_string(),
        };
        self.done.last_mut().expect("start_file pushed it").tensors.push(tensor);
        self.hasher.reset();
        self.tensor += 1;
        self.written = 0;
        if self.files.iter().any(|f| f.tensors.end == self.tensor) {
            let (path, out) = self.open.take().expect("a tensor was just written to it");
            let file = out.into_inner().map_err(|e| Error::io(&path, "write", e.into_error()))?;
            file.sync_all().map_err(|e| Error::io(&path, "sync", e))?;
        }
        Ok(())
    }

    /// Call after the last tensor.
    ///
    /// Errors: [`Error::Bug`] if tensors are missing.
    pub fn finish(self) -> Result<(), Error> {
        if self.tensor == self.weights.len() {
            return Ok(());
        }
        let missing = &self.weights[self.tensor].name;
        Err(Error::Bug(format!(
            "weight {missing}: {} of {} bytes were written",
            self.written, self.weights[self.tensor].bytes
        )))
    }
}

/// Takes the space now, where the file system can, so that a full disk is found before the work.
fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
    let length = i64::try_from(bytes).map_err(|_| std::io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: a plain system call on a descriptor that `file` keeps open.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}
