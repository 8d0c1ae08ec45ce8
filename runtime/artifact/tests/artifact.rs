//! Writing, reading, damaging and replacing artifacts.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_artifact::manifest::section;
use deepfuse_artifact::weights::WeightDecl;
use deepfuse_artifact::writer::{ArtifactWriter, check_output};
use deepfuse_artifact::{Artifact, Error, exit, interrupt, plan_text};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn leak(value: bool) -> &'static AtomicBool {
    Box::leak(Box::new(AtomicBool::new(value)))
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    let written = write_default(&path);
    let a = Artifact::open(&path).unwrap();
    assert_eq!(*a.manifest(), written);
    assert_eq!(*a.plan(), plan_text::parse(PLAN).unwrap());
    assert_eq!(a.section(section::CODE), Some(&[7; 5000][..]));
    for (i, d) in decls().iter().enumerate() {
        let bytes = a.weights().get(&d.name).unwrap();
        assert_eq!(bytes.as_ptr() as usize % 64, 0);
        assert_eq!(&bytes[..d.bytes as usize], content(i, d.bytes));
        assert!(bytes[d.bytes as usize..].iter().all(|b| *b == 0));
        assert_eq!(a.elements(&d.name), Some(&d.elements));
    }
    let v = a.verify(3, interrupt::flag()).unwrap();
    assert_eq!((v.tensors, v.bytes), (3, 1024 + 64 + 4160));
    assert!(v.damaged.is_empty() && v.not_finite.is_empty());
    assert_eq!(names(dir.path()), ["m.dfz"]);
}

#[test]
fn files_split_by_size_and_are_plain_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    let m = write(&path, 1100, 64, interrupt::flag()).unwrap();
    let split: Vec<_> = m.weights.iter().map(|f| (f.file.as_str(), f.tensors.len(), f.bytes)).collect();
    let [a, b] = [
        ("weights-00001-of-00002.safetensors", 2, 4096 + 1088),
        ("weights-00002-of-00002.safetensors", 1, 4096 + 4160),
    ];
    assert_eq!(split, [a, b]);
    let bytes = fs::read(path.join(a.0)).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    assert_eq!(length % 8, 0);
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["table"], serde_json::json!({"dtype": "BF16", "shape": [512], "data_offsets": [0, 1024]}));
    assert_eq!(header["gain"], serde_json::json!({"dtype": "F32", "shape": [16], "data_offsets": [1024, 1088]}));
    assert!(Artifact::open(&path).unwrap().weights().get("experts").is_some());
}

#[test]
fn bytes_do_not_depend_on_place_chunks_or_time() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("deeper");
    fs::create_dir(&other).unwrap();
    write(&dir.path().join("a.dfz"), 1100, 1, interrupt::flag()).unwrap();
    write(&other.join("b.dfz"), 1100, 4000, interrupt::flag()).unwrap();
    assert_eq!(files(&dir.path().join("a.dfz")), files(&other.join("b.dfz")));
}

/// Flips bits all over every file: each must be rejected, weight data by `verify`.
#[test]
fn a_flipped_byte_anywhere_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    let manifest = write_default(&path);
    let mut places = 0;
    for (name, good) in files(&path) {
        let weights = manifest.weights.iter().find(|w| w.file == name);
        let step = (good.len() / 211).max(1);
        for at in (0..good.len()).step_by(step).chain([good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(path.join(&name), &bad).unwrap();
            let in_data = weights.is_some_and(|w| at as u64 >= w.header_bytes);
            if in_data {
                let v = Artifact::open(&path).unwrap().verify(2, interrupt::flag()).unwrap();
                assert_eq!(v.damaged.len(), 1, "{name} byte {at}");
                let report = v.damaged[0].report();
                assert_eq!(report.exit, exit::REJECTED);
                assert!(report.tensor.is_some() && report.expected != report.found);
            } else {
                let e = Artifact::open(&path).expect_err(&format!("{name} byte {at}"));
                assert_eq!(e.exit(), exit::REJECTED, "{name} byte {at}: {e}");
                assert!(e.report().file.is_some());
            }
            places += 1;
        }
        fs::write(path.join(&name), &good).unwrap();
    }
    assert!(places > 800, "{places}");
    Artifact::open(&path).unwrap();
}

#[test]
fn truncated_extended_missing_and_odd_files_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    write_default(&path);
    for (name, good) in files(&path) {
        let file = path.join(&name);
        for bad in [&good[..good.len() - 1], &good[..good.len() / 2], &[], &[&good[..], b"x"].concat()] {
            fs::write(&file, bad).unwrap();
            assert_eq!(Artifact::open(&path).unwrap_err().exit(), exit::REJECTED, "{name} with {} bytes", bad.len());
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(Artifact::open(&path).unwrap_err().exit(), exit::REJECTED, "{name} is missing");
        fs::create_dir(&file).unwrap();
        assert_eq!(Artifact::open(&path).unwrap_err().exit(), exit::REJECTED, "{name} is a directory");
        fs::remove_dir(&file).unwrap();
        fs::write(&file, &good).unwrap();
    }
    assert!(matches!(Artifact::open(&dir.path().join("none")), Err(Error::NotFound { .. })));
    assert!(matches!(Artifact::open(dir.path()), Err(Error::NotAnArtifact { .. })));
    assert!(matches!(Artifact::open(&path.join("plan")), Err(Error::NotAnArtifact { .. })));
}

/// A newer version is named as such, and one that is sealed correctly but breaks a rule is rejected.
#[test]
fn a_resealed_manifest_is_still_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    let good = write_default(&path).to_json();
    let reseal = |text: &str| {
        fs::write(path.join("manifest.json"), text).unwrap();
        fs::write(path.join("manifest.blake3"), format!("{}  manifest.json\n", blake3::hash(text.as_bytes()))).unwrap();
        Artifact::open(&path).unwrap_err()
    };
    let e = reseal(&good.replace("\"format_version\": 1", "\"format_version\": 9"));
    assert_eq!((e.code(), e.report().found.as_deref()), ("artifact::version", Some("9")));
    for (from, to, reason) in [
        ("\"plan\",\n      \"bytes\"", "\"../plan\",\n      \"bytes\"", "not a plain file name"),
        ("\"tokenizer.json\"", "\"plan\"", "named twice"),
        ("\"name\": \"code\"", "\"name\": \"cod\"", "no section `code`"),
        ("\"shapes_only\": false", "\"shapes_only\": true", "contradict"),
        ("\"vocab\": 16", "\"vocab\": 17", "vocab 16 in the plan, 17 in the manifest"),
        ("\"name\": \"gain\"", "\"name\": \"pain\"", "not those of the manifest"),
        ("\"elements\": \"f32\"", "\"elements\": \"f33\"", "types of elements"),
    ] {
        assert!(good.contains(from), "{from}");
        let e = reseal(&good.replace(from, to));
        assert!(e.to_string().contains(reason), "{to}: {e}");
        assert_eq!(e.exit(), exit::REJECTED);
    }
}

#[test]
fn an_artifact_is_replaced_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    write(&path, 1100, 64, interrupt::flag()).unwrap();
    let old = Artifact::open(&path).unwrap();
    let m = write_default(&path);
    assert_eq!(*Artifact::open(&path).unwrap().manifest(), m);
    assert_eq!(old.weights().get("gain").unwrap().len(), 64, "a mapped artifact outlives its replacement");
    assert_eq!(names(dir.path()), ["m.dfz"]);

    let (file, folder, link) = (dir.path().join("file"), dir.path().join("folder"), dir.path().join("link"));
    fs::write(&file, "text").unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("manifest.json"), "{\"format\": \"other\"}").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for taken in [&file, &folder, &link, Path::new("/")] {
        let e = ArtifactWriter::create(taken, interrupt::flag()).unwrap_err();
        assert_eq!((e.code(), e.exit()), ("artifact::occupied", exit::INPUT), "{e}");
    }
    assert_eq!(names(dir.path()), ["file", "folder", "link", "m.dfz"]);
}

#[test]
fn an_interrupt_or_error_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    let stop = leak(false);
    let mut w = ArtifactWriter::create(&path, stop).unwrap();
    write_sections(&mut w).unwrap();
    let decls = decls();
    let mut weights = w.weights(&decls, 1100).unwrap();
    weights.append(0, &content(0, 500)).unwrap();
    stop.store(true, Ordering::Relaxed);
    let e = weights.append(0, &content(0, 500)).unwrap_err();
    assert_eq!(e.exit(), exit::INTERRUPTED);
    assert_eq!(names(dir.path()).len(), 1);
    drop(w);
    assert!(names(dir.path()).is_empty());
    // The old one survives.
    write_default(&path);
    assert!(matches!(write(&path, 1100, 64, leak(true)), Err(Error::Interrupted)));
    Artifact::open(&path).unwrap();
    assert_eq!(names(dir.path()), ["m.dfz"]);
}

#[test]
fn leftovers_of_the_dead_are_removed_and_the_living_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    let living = ArtifactWriter::create(&path, interrupt::flag()).unwrap();
    for name in [".m.dfz.123-0.tmp", ".m.dfz.mine.tmp", ".n.dfz.123-0.tmp"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("plan"), "x").unwrap();
    }
    write_default(&path);
    let left = names(dir.path());
    assert!(!left.contains(&".m.dfz.123-0.tmp".to_owned()), "{left:?}");
    assert_eq!(left.len(), 4, "{left:?}");
    drop(living);
    assert_eq!(names(dir.path()), [".m.dfz.mine.tmp", ".n.dfz.123-0.tmp", "m.dfz"]);
}

#[test]
fn space_is_checked_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    let huge = [WeightDecl { bytes: 1 << 60, ..decls()[0].clone() }];
    let mut w = ArtifactWriter::create(&path, interrupt::flag()).unwrap();
    let e = w.weights(&huge, 1 << 30).unwrap_err();
    assert_eq!((e.code(), e.exit()), ("artifact::space", exit::RESOURCES));
    let report = e.report();
    assert!(report.expected.unwrap().ends_with("bytes") && report.found.unwrap().ends_with("available"));
    assert!(check_output(&path, 1 << 60).is_err());
    check_output(&path, 1 << 10).unwrap();
}

#[test]
fn a_writer_that_breaks_its_promise_is_a_bug() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = ArtifactWriter::create(&dir.path().join("m.dfz"), interrupt::flag()).unwrap();
    let decls = decls();
    let mut weights = w.weights(&decls, 1100).unwrap();
    assert_eq!(weights.append(1, &[0]).unwrap_err().exit(), exit::BUG);
    weights.append(0, &[0; 1000]).unwrap();
    assert_eq!(weights.append(1, &[0; 65]).unwrap_err().exit(), exit::BUG);
    assert_eq!(weights.finish().unwrap_err().exit(), exit::BUG);
    assert_eq!(w.section("a", "../a", b"").unwrap_err().exit(), exit::BUG);
}

#[test]
fn not_finite_numbers_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    let mut w = ArtifactWriter::create(&path, interrupt::flag()).unwrap();
    write_sections(&mut w).unwrap();
    let decls = decls();
    let mut weights = w.weights(&decls, 1 << 20).unwrap();
    let mut table = content(0, 1000);
    table[10..12].copy_from_slice(&0x7f80u16.to_le_bytes()); // bf16 infinity
    table[20..22].copy_from_slice(&0xffc1u16.to_le_bytes()); // bf16 NaN
    weights.append(0, &table).unwrap();
    weights.append(1, &[0; 64]).unwrap();
    let mut experts = content(2, 4160);
    experts[1040 + 3] = 0xff; // fp8 NaN in the second matrix
    experts[1024 + 4..1024 + 8].copy_from_slice(&f32::NAN.to_le_bytes()); // a scale of the first
    experts[2080 + 1024..2080 + 1028].copy_from_slice(&f32::INFINITY.to_le_bytes());
    weights.append(2, &experts).unwrap();
    weights.finish().unwrap();
    w.finish(about()).unwrap();
    let v = Artifact::open(&path).unwrap().verify(1, interrupt::flag()).unwrap();
    assert_eq!(v.not_finite, [("table".to_owned(), 2), ("experts".to_owned(), 3)]);
}

#[test]
fn shapes_alone_make_an_artifact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    let mut w = ArtifactWriter::create(&path, interrupt::flag()).unwrap();
    write_sections(&mut w).unwrap();
    assert!(w.finish(about()).unwrap().shapes_only);
    assert!(Artifact::open(&path).unwrap().manifest().shapes_only);
}

/// In a child process, so that its limit does not touch the other tests: a file may grow to 2000 bytes, as if the disk were full.
#[test]
fn a_full_disk_leaves_nothing() {
    const CHILD: &str = "DEEPFUSE_TEST_FULL_DISK";
    let test = "a_full_disk_leaves_nothing";
    if let Some(path) = std::env::var_os(CHILD) {
        let limit = libc::rlimit { rlim_cur: 2000, rlim_max: 2000 };
        // SAFETY: plain system calls in a process of our own.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
        }
        let e = write(Path::new(&path), 1 << 20, 100, interrupt::flag()).unwrap_err();
        assert_eq!((e.code(), e.exit()), ("artifact::disk-full", exit::RESOURCES), "{e}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, dir.path().join("m.dfz"))
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    assert!(names(dir.path()).is_empty());
}

/// In a child process: a signal in mid-write ends it in order, with nothing left; the old artifact stays.
#[test]
fn a_signal_in_mid_write_leaves_nothing() {
    const CHILD: &str = "DEEPFUSE_TEST_SIGNAL";
    if let Some(path) = std::env::var_os(CHILD) {
        interrupt::install();
        let mut w = ArtifactWriter::create(Path::new(&path), interrupt::flag()).unwrap();
        write_sections(&mut w).unwrap();
        let decls = decls();
        let mut weights = w.weights(&decls, 1 << 20).unwrap();
        weights.append(0, &content(0, 500)).unwrap();
        assert!(!interrupt::requested());
        // SAFETY: sends a signal to this process, which handles it.
        unsafe { libc::raise(libc::SIGINT) };
        assert!(interrupt::requested());
        let e = weights.append(0, &content(0, 500)).unwrap_err();
        drop(w);
        std::process::exit(e.exit().into());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dfz");
    write_default(&path);
    let before = files(&path);
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_signal_in_mid_write_leaves_nothing", "--nocapture"])
        .env(CHILD, &path)
        .status()
        .unwrap();
    assert_eq!(child.code(), Some(exit::INTERRUPTED.into()));
    assert_eq!((names(dir.path()), files(&path)), (vec!["m.dfz".to_owned()], before));
}
