//! Opens an artifact and checks it.

use crate::Error;
use crate::elements::Elements;
use crate::manifest::{Manifest, ManifestError, Section, section};
use crate::plan::Plan;
use crate::plan_text;
use crate::weights::{TENSOR_ALIGN, Weights};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Largest manifest and section, in bytes: far above what a real one has, below what would hurt.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;
const MAX_SECTION_BYTES: u64 = 1 << 30;

/// An artifact whose sections, weight headers and sizes have been checked.
#[derive(Debug)]
pub struct Artifact {
    path: PathBuf,
    manifest: Manifest,
    digest: String,
    plan: Plan,
    sections: BTreeMap<String, Vec<u8>>,
    weights: Weights,
}

/// What [`Artifact::verify`] found in the weights.
#[derive(Debug, Default)]
pub struct Verification {
    pub tensors: usize,
    pub bytes: u64,
    /// Digests that differ, in the order of the files.
    pub damaged: Vec<Error>,
    /// Tensors with NaN or Inf, and how many.
    pub not_finite: Vec<(String, u64)>,
}

impl Artifact {
    /// Reads manifest and sections, compares their digests, maps the weights.
    ///
    /// Errors: every one names the file and both values; exit code 5 for anything that is not as it was written.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (manifest, digest) = read_manifest(path)?;
        let mut sections = BTreeMap::new();
        for s in &manifest.sections {
            sections.insert(s.name.clone(), read_section(path, s)?);
        }
        let plan = sections.remove(section::PLAN).expect("a checked manifest has a plan");
        let plan_path = path.join(manifest.section(section::PLAN).map_or("", |s| &s.file));
        let text = String::from_utf8(plan).map_err(|e| Error::malformed(&plan_path, section::PLAN, &e))?;
        let plan = plan_text::parse(&text).map_err(|source| Error::Plan { path: plan_path, source })?;
        let weights = Weights::open(path, &manifest.weights)?;
        let artifact = Self { path: path.to_owned(), manifest, digest, plan, sections, weights };
        artifact.check_weights()?;
        Ok(artifact)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// BLAKE3 of the manifest; since that has all other digests, the identity of the artifact.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The checked bytes of a section other than the plan, see [`section`].
    pub fn section(&self, name: &str) -> Option<&[u8]> {
        self.sections.get(name).map(Vec::as_slice)
    }

    /// Packed weights by name.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The weights are those of the plan.
    fn check_weights(&self) -> Result<(), Error> {
        let bad = |reason: String| Err(Error::Weights { path: self.path.clone(), reason });
        if self.plan.vocab != self.manifest.model.vocab {
            return bad(format!(
                "vocab {} in the plan, {} in the manifest",
                self.plan.vocab, self.manifest.model.vocab
            ));
        }
        if self.manifest.shapes_only {
            return Ok(());
        }
        for w in &self.plan.weights {
            let stored = self.weights.get(&w.name).map(|b| b.len() as u64);
            if stored != Some(w.bytes.next_multiple_of(TENSOR_ALIGN)) {
                let found = stored.map_or("none".to_owned(), |n| format!("{n}"));
                return bad(format!("weight {} has {} bytes in the plan and {found} in the files", w.name, w.bytes));
            }
        }
        Ok(())
    }

    /// Compares the digest of every weight tensor and looks for NaN and Inf, on `threads` threads.
    ///
    /// Errors: [`Error::Interrupted`] when `stop` is set; damage is in the result.
    pub fn verify(&self, threads: usize, stop: &AtomicBool) -> Result<Verification, Error> {
        let tensors: Vec<_> =
            self.manifest.weights.iter().flat_map(|f| f.tensors.iter().map(move |t| (f, t))).collect();
        let next = AtomicUsize::new(0);
        let results = Mutex::new(vec![None; tensors.len()]);
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some((_, tensor)) = tensors.get(i) else { return };
                let bytes = self.weights.get(&tensor.name).expect("the map has every tensor of the manifest");
                let result =
                    (blake3::hash(bytes).to_string(), bytes.len() as u64, tensor.elements.count_not_finite(bytes));
                results.lock().expect("no holder panics")[i] = Some(result);
            }
        };
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let mut v = Verification::default();
        for ((file, tensor), result) in tensors.iter().zip(results.into_inner().expect("no holder panics")) {
            let (found, bytes, not_finite) = result.expect("every tensor was visited");
            v.tensors += 1;
            v.bytes += bytes;
            if found != tensor.blake3 {
                let (path, expected) = (self.path.join(&file.file), tensor.blake3.clone());
                v.damaged.push(Error::WeightDigest { path, tensor: tensor.name.clone(), expected, found });
            }
            if not_finite > 0 {
                v.not_finite.push((tensor.name.clone(), not_finite));
            }
        }
        Ok(v)
    }

    /// What the bytes of a weight are.
    pub fn elements(&self, name: &str) -> Option<&Elements> {
        self.manifest.weights.iter().flat_map(|f| &f.tensors).find(|t| t.name == name).map(|t| &t.elements)
    }
}

/// An error of the operating system for a file that the artifact must have: gone means damaged.
pub(crate) fn missing(path: &Path, section: &str, e: std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::NotFound {
        return Error::malformed(path, section, &"the file is missing");
    }
    Error::io(path, "open", e)
}

/// The checked manifest of an artifact, and its digest. Nothing else is read.
pub fn read_manifest(path: &Path) -> Result<(Manifest, String), Error> {
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { path: path.to_owned() },
        _ => Error::io(path, "open", e),
    })?;
    let not_an_artifact = |reason: &str| Error::NotAnArtifact { path: path.to_owned(), reason: reason.to_owned() };
    if !meta.is_dir() {
        return Err(not_an_artifact("it is a file"));
    }
    let file = path.join("manifest.json");
    if !file.exists() {
        return Err(not_an_artifact("it has no manifest.json"));
    }
    let text = read_file(&file, "manifest", MAX_MANIFEST_BYTES)?;
    let seal_path = path.join("manifest.blake3");
    let seal = read_file(&seal_path, "manifest.blake3", 4096)?;
    let found = blake3::hash(&text).to_string();
    let parsed = Manifest::from_json(&text);
    if let Err(ManifestError::Version(found)) = parsed {
        return Err(Error::Version { path: path.to_owned(), found });
    }
    if seal != format!("{found}  manifest.json\n").as_bytes() {
        let expected = String::from_utf8_lossy(&seal).split(' ').next().unwrap_or("").to_owned();
        return Err(Error::Digest { path: file, section: "manifest".to_owned(), expected, found });
    }
    match parsed {
        Ok(manifest) => Ok((manifest, found)),
        Err(e) => Err(Error::malformed(&file, "manifest", &e)),
    }
}

fn read_file(path: &Path, section: &str, limit: u64) -> Result<Vec<u8>, Error> {
    let meta = std::fs::metadata(path).map_err(|e| missing(path, section, e))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, section, &"not a regular file"));
    }
    let file = std::fs::File::open(path).map_err(|e| missing(path, section, e))?;
    let mut bytes = vec![];
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::malformed(path, section, &format_args!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

fn read_section(dir: &Path, s: &Section) -> Result<Vec<u8>, Error> {
    let path = dir.join(&s.file);
    let meta = std::fs::metadata(&path).map_err(|e| missing(&path, &s.name, e))?;
    if meta.len() != s.bytes {
        return Err(Error::Length { path, section: s.name.clone(), expected: s.bytes, found: meta.len() });
    }
    let bytes = read_file(&path, &s.name, MAX_SECTION_BYTES)?;
    let found = blake3::hash(&bytes).to_string();
    if found != s.blake3 {
        return Err(Error::Digest { path, section: s.name.clone(), expected: s.blake3.clone(), found });
    }
    Ok(bytes)
}
