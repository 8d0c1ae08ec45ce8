//! Writes an artifact: under a temporary name beside the target, synced, then renamed. Nothing half-written is ever seen.

use crate::Error;
use crate::manifest::*;
use crate::weights::{WeightDecl, WeightsWriter, layout};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Space beyond the weights that must be free: plan, code, tokenizer, certificate.
pub const SECTIONS_RESERVE_BYTES: u64 = 32 << 20;

/// What the manifest says beyond sections and weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    pub toolchain: String,
    pub target: TargetInfo,
    pub model: ModelInfo,
    /// Longest sequence, in tokens.
    pub context: u32,
    pub numerics: NumericsInfo,
    pub fusion: FusionInfo,
    pub tokens: TokensInfo,
}

/// An artifact being written. Dropped before [`ArtifactWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct ArtifactWriter {
    target: PathBuf,
    temporary: PathBuf,
    /// Holds a lock on the temporary directory as long as we live; who can lock it may remove it.
    directory: File,
    stop: &'static AtomicBool,
    sections: Vec<Section>,
    weights: Vec<WeightFile>,
    committed: bool,
}

impl ArtifactWriter {
    /// Starts writing `path`; what is there stays as it is until [`ArtifactWriter::finish`].
    ///
    /// `stop` is looked at during long work, usually [`crate::interrupt::flag`]. Temporary directories of processes that died are removed.
    ///
    /// Errors: [`Error::Occupied`] if `path` exists and is not an artifact.
    pub fn create(path: &Path, stop: &'static AtomicBool) -> Result<Self, Error> {
        let target = check_target(path)?;
        remove_stale(&target);
        let (temporary, directory) = make_temporary(&target)?;
        Ok(Self { target, temporary, directory, stop, sections: vec![], weights: vec![], committed: false })
    }

    /// Writes a section to a file of its own.
    pub fn section(&mut self, name: &str, file: &str, bytes: &[u8]) -> Result<(), Error> {
        if !is_plain_file_name(file) || self.sections.iter().any(|s| s.name == name || s.file == file) {
            return Err(Error::Bug(format!("section {name} in file {file}: a bad or repeated name")));
        }
        self.check_stop()?;
        self.write_file(file, bytes)?;
        let blake3 = blake3::hash(bytes).to_string();
        self.sections.push(Section { name: name.to_owned(), file: file.to_owned(), bytes: bytes.len() as u64, blake3 });
        Ok(())
    }

    /// Starts the weight files; the tensors follow in the order of `weights`.
    ///
    /// Errors: [`Error::Space`] if they do not fit the disk.
    pub fn weights<'a>(
        &'a mut self,
        weights: &'a [WeightDecl],
        max_file_bytes: u64,
    ) -> Result<WeightsWriter<'a>, Error> {
        let mut names = std::collections::HashSet::new();
        if let Some(bad) = weights.iter().find(|w| w.bytes == 0 || !names.insert(&w.name)) {
            return Err(Error::Bug(format!("weight {}: no bytes, or two of that name", bad.name)));
        }
        let files = layout(weights, max_file_bytes);
        check_space(&self.target, files.iter().map(|f| f.bytes).sum())?;
        Ok(WeightsWriter::new(&self.temporary, weights, files, &mut self.weights, self.stop))
    }

    /// Writes the manifest, syncs everything and moves the artifact to its place, replacing an artifact that is there.
    pub fn finish(mut self, about: About) -> Result<Manifest, Error> {
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            format_version: VERSION,
            toolchain: about.toolchain,
            target: about.target,
            model: about.model,
            limits: LimitsInfo { context: about.context, page_tokens: crate::PAGE_TOKENS },
            numerics: about.numerics,
            fusion: about.fusion,
            tokens: about.tokens,
            shapes_only: self.weights.is_empty(),
            sections: std::mem::take(&mut self.sections),
            weights: std::mem::take(&mut self.weights),
        };
        let json = manifest.to_json();
        let digest = blake3::hash(json.as_bytes());
        self.write_file("manifest.json", json.as_bytes())?;
        self.write_file("manifest.blake3", format!("{digest}  manifest.json\n").as_bytes())?;
        self.directory.sync_all().map_err(|e| Error::io(&self.temporary, "sync", e))?;
        check_target(&self.target)?;
        self.check_stop()?;
        self.commit()?;
        Ok(manifest)
    }

    fn check_stop(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.temporary.join(name);
        let mut file = File::create(&path).map_err(|e| Error::io(&path, "create", e))?;
        file.write_all(bytes).map_err(|e| Error::io(&path, "write", e))?;
        file.sync_all().map_err(|e| Error::io(&path, "sync", e))
    }

    /// Renames; an old artifact takes the temporary name and is removed.
    fn commit(&mut self) -> Result<(), Error> {
        if self.target.exists() {
            exchange(&self.temporary, &self.target).map_err(|e| Error::io(&self.target, "replace", e))?;
            self.committed = true;
            let _ = fs::remove_dir_all(&self.temporary); // what stays is removed as stale by the next writer
        } else {
            fs::rename(&self.temporary, &self.target).map_err(|e| Error::io(&self.target, "rename", e))?;
            self.committed = true;
        }
        let parent = parent_of(&self.target);
        File::open(parent).and_then(|d| d.sync_all()).map_err(|e| Error::io(parent, "sync", e))
    }
}

impl Drop for ArtifactWriter {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.temporary); // nothing can be done about a failure here
        }
    }
}

/// Checks before any work that `path` may be written and that `weight_bytes` and some more fit the disk.
pub fn check_output(path: &Path, weight_bytes: u64) -> Result<(), Error> {
    check_space(&check_target(path)?, weight_bytes)
}

fn check_space(target: &Path, weight_bytes: u64) -> Result<(), Error> {
    let needed = weight_bytes.saturating_add(SECTIONS_RESERVE_BYTES);
    let available =
        available_bytes(parent_of(target)).map_err(|e| Error::io(parent_of(target), "look up free space", e))?;
    if needed > available { Err(Error::Space { path: target.to_owned(), needed, available }) } else { Ok(()) }
}

/// Bytes that this user can still write to the file system of `dir`.
pub fn available_bytes(dir: &Path) -> std::io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: the structure is plain data that the call fills; the path is a C string.
    let mut info: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut info) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(info.f_bavail.saturating_mul(info.f_frsize))
}

fn parent_of(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path without a trailing slash, if an artifact may be written there.
fn check_target(path: &Path) -> Result<PathBuf, Error> {
    let occupied = |reason: &str| Err(Error::Occupied { path: path.to_owned(), reason: reason.to_owned() });
    let Some(name) = path.file_name() else { return occupied("it has no file name") };
    let target = parent_of(path).join(name);
    let meta = match fs::symlink_metadata(&target) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(target),
        Err(e) => return Err(Error::io(&target, "look at", e)),
    };
    if meta.is_symlink() {
        return occupied("it is a symbolic link");
    }
    if !meta.is_dir() {
        return occupied("it is a file");
    }
    #[derive(serde::Deserialize)]
    struct Mark {
        format: String,
    }
    let manifest = target.join("manifest.json");
    let is_file = fs::symlink_metadata(&manifest).is_ok_and(|m| m.is_file());
    let mark =
        if is_file { fs::read(&manifest).ok().and_then(|b| serde_json::from_slice::<Mark>(&b).ok()) } else { None };
    match mark {
        Some(m) if m.format == FORMAT => Ok(target),
        _ => occupied("a directory without a deepfuse manifest"),
    }
}

/// `.NAME.dfz.PID-N.tmp`, beside the target so that a rename is atomic.
fn temporary_name(target: &Path, id: &str) -> Vec<u8> {
    let name = target.file_name().map(OsStr::as_bytes).unwrap_or_default();
    [b".", name, b".", id.as_bytes(), b".tmp"].concat()
}

fn make_temporary(target: &Path) -> Result<(PathBuf, File), Error> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = parent_of(target).join(OsStr::from_bytes(&temporary_name(target, &id)));
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(Error::io(&path, "create", e)),
        }
        // Between creation and lock another writer may take it for stale and remove it: then try again.
        if let Some(directory) = lock(&path)
            && path.exists()
        {
            return Ok((path, directory));
        }
    }
}

/// Opens and locks a directory, if nobody else has.
fn lock(path: &Path) -> Option<File> {
    let directory = File::open(path).ok()?;
    // SAFETY: a plain system call on an open descriptor.
    let locked = unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
    locked.then_some(directory)
}

/// Removes temporary directories of `target` whose writers died: nobody holds their lock.
fn remove_stale(target: &Path) {
    let Ok(entries) = fs::read_dir(parent_of(target)) else { return };
    let (prefix, suffix) = (temporary_name(target, ""), b".tmp");
    let prefix = &prefix[..prefix.len() - suffix.len()];
    for entry in entries.flatten() {
        let name = entry.file_name();
        let id = name.as_bytes().strip_prefix(prefix).and_then(|n| n.strip_suffix(suffix));
        let ours = id.is_some_and(|id| !id.is_empty() && id.iter().all(|c| c.is_ascii_digit() || *c == b'-'));
        if ours && entry.file_type().is_ok_and(|t| t.is_dir()) && lock(&entry.path()).is_some() {
            let _ = fs::remove_dir_all(entry.path()); // a leftover that cannot be removed is no reason to stop
        }
    }
}

/// Swaps two directories in one step; where the file system cannot, in two renames.
fn exchange(new: &Path, old: &Path) -> std::io::Result<()> {
    let (a, b) = (CString::new(new.as_os_str().as_bytes())?, CString::new(old.as_os_str().as_bytes())?);
    // SAFETY: a plain system call with two C strings.
    let swapped =
        unsafe { libc::renameat2(libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), libc::RENAME_EXCHANGE) };
    if swapped == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)) {
        return Err(error);
    }
    let aside = new.with_extension("old");
    fs::rename(old, &aside)?;
    fs::rename(new, old).inspect_err(|_| drop(fs::rename(&aside, old)))?;
    fs::rename(&aside, new)
}
