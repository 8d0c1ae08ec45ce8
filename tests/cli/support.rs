//! Running the binary, compiling models once, checkpoints to break.

use deepfuse::{Request, output, pipeline};
use deepfuse_codegen::x86::targets;
use deepfuse_frontend::Activations;
use deepfuse_passes::fuse::Numerics;
use deepfuse_runtime::Artifact;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A command that runs longer hangs.
const WATCHDOG: Duration = Duration::from_mins(5);

pub fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name)
}

pub fn golden(name: &str) -> PathBuf {
    checkpoint(name).join("golden.safetensors")
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_deepfuse"));
    c.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

pub fn deepfuse<S: AsRef<OsStr>>(args: &[S]) -> Output {
    wait(command(args).spawn().unwrap())
}

/// Waits for the end of a command; it must not panic, and not hang.
pub fn wait(mut child: Child) -> Output {
    fn reader(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut bytes = vec![];
            from.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let (stdout, stderr) = (child.stdout.take().map(reader), child.stderr.take().map(reader));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > WATCHDOG {
            child.kill().unwrap();
            panic!("the command hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |t: Option<std::thread::JoinHandle<String>>| t.map_or_else(String::new, |t| t.join().unwrap());
    let out = Output { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) };
    assert!(!out.stderr.contains("panicked"), "{out:?}");
    out
}

/// The one JSON object that a command printed.
pub fn object(out: &Output) -> Value {
    assert_eq!(out.stdout.lines().count(), 1, "one object: {out:?}");
    serde_json::from_str(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
}

/// A command that must fail, as JSON and as text: both say the same.
#[track_caller]
pub fn fails<S: AsRef<OsStr>>(args: &[S], exit: i32, code: &str) -> Value {
    let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    let out = deepfuse(&args);
    assert_eq!(out.code, exit, "{args:?}: {out:?}");
    if code == "usage" && out.stderr.starts_with("error: ") {
        assert!(out.stderr.contains("try '--help'"), "{out:?}");
    } else {
        assert!(out.stderr.contains(&format!("error[{code}]: ")), "{args:?}: {out:?}");
    }
    assert!(!out.stderr.contains('\x1b'), "plain text without a terminal: {out:?}");
    let report = error_object(&deepfuse(&[&args[..], &[OsStr::new("--json")]].concat()));
    assert_eq!((report["exit"].as_i64(), report["code"].as_str()), (Some(i64::from(exit)), Some(code)), "{report}");
    report
}

#[track_caller]
pub fn error_object(out: &Output) -> Value {
    let report = object(out);
    assert_eq!(report["schema"], "deepfuse.error/1", "{out:?}");
    assert_eq!(report["exit"], out.code, "{out:?}");
    assert!(report["message"].as_str().is_some_and(|m| m.len() > 8), "{out:?}");
    for field in ["file", "tensor", "expected", "found", "help"] {
        assert!(
            report.get(field).is_some_and(|v| v.is_null() || v.as_str().is_some_and(|s| !s.is_empty())),
            "{field}: {out:?}"
        );
    }
    report
}

/// Names in a directory, hidden ones too.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A directory of this process below `target`; those of processes that ended are removed.
pub fn scratch() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for name in names(base) {
            let pid = name.strip_prefix("cli-").and_then(|p| p.parse::<u32>().ok());
            if pid.is_some_and(|p| !Path::new(&format!("/proc/{p}")).exists()) {
                let _ = fs::remove_dir_all(base.join(name));
            }
        }
        let dir = base.join(format!("cli-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    })
}

pub fn request(name: &str, out: &Path) -> Request {
    let usual = Request::new(checkpoint(name), out.to_owned(), targets::native());
    Request { activations: Activations::F32, numerics: Numerics::Reassociates, ..usual }
}

/// Compiles and writes; the warnings.
pub fn compile(req: &Request) -> Vec<String> {
    let compiled = pipeline::compile(req, &mut |_| {}).unwrap_or_else(|e| panic!("{}", e.report()));
    output::write(&compiled, req, &mut |_| {}).unwrap_or_else(|e| panic!("{}", e.report())).warnings
}

/// Path of a committed checkpoint's artifact with f32 activations for this machine, compiled once.
pub fn compiled(name: &'static str) -> PathBuf {
    type Once = Arc<OnceLock<PathBuf>>;
    static CACHE: OnceLock<Mutex<HashMap<&str, Once>>> = OnceLock::new();
    let once = CACHE.get_or_init(Mutex::default).lock().unwrap().entry(name).or_default().clone();
    let path = once.get_or_init(|| {
        let path = scratch().join(format!("{name}.dfz"));
        compile(&request(name, &path));
        path
    });
    path.clone()
}

pub fn open(name: &'static str) -> Arc<Artifact> {
    Arc::new(Artifact::open(&compiled(name)).unwrap())
}

/// A copy of an artifact, to break.
pub fn copy_of(artifact: &Path) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.dfz");
    fs::create_dir(&path).unwrap();
    for file in names(artifact) {
        fs::copy(artifact.join(&file), path.join(&file)).unwrap();
    }
    (dir, path)
}

/// A checkpoint to break. Its files are links to the originals, as in a download cache, until a case replaces them.
pub struct Broken(pub tempfile::TempDir);

pub const SINGLE: &str = "model.safetensors";

impl Broken {
    pub fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in names(&checkpoint(name)) {
            let target = fs::canonicalize(checkpoint(name).join(&file)).unwrap();
            std::os::unix::fs::symlink(target, dir.path().join(&file)).unwrap();
        }
        Self(dir)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap()
    }

    /// Replaces a link or a file.
    pub fn write(&self, file: &str, bytes: &[u8]) {
        let _ = fs::remove_file(self.path(file));
        fs::write(self.path(file), bytes).unwrap();
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).unwrap();
    }

    pub fn fifo(&self, file: &str) {
        let _ = fs::remove_file(self.path(file));
        let status = Command::new("mkfifo").arg(self.path(file)).status().unwrap();
        assert!(status.success());
    }

    pub fn config(&self, field: &str, value: Value) {
        let mut config: Value = serde_json::from_slice(&self.read("config.json")).unwrap();
        config[field] = value;
        self.write("config.json", config.to_string().as_bytes());
    }

    fn header(&self) -> (Value, Vec<u8>) {
        let bytes = self.read(SINGLE);
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        (serde_json::from_slice(&bytes[8..8 + n]).unwrap(), bytes[8 + n..].to_vec())
    }

    /// Changes the header of the single file; the data stays.
    pub fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let (mut header, data) = self.header();
        edit(&mut header);
        self.raw(header.to_string().as_bytes(), &data);
    }

    /// Header text and data, with the right length before them.
    pub fn raw(&self, header: &[u8], data: &[u8]) {
        self.write(SINGLE, &[&(header.len() as u64).to_le_bytes(), header, data].concat());
    }

    /// Changes stored bytes of one tensor.
    pub fn poke(&self, tensor: &str, at: usize, bytes: &[u8]) {
        let (header, mut data) = self.header();
        let from = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + at;
        data[from..from + bytes.len()].copy_from_slice(bytes);
        self.raw(header.to_string().as_bytes(), &data);
    }

    /// Gives a tensor another name.
    pub fn rename(&self, tensor: &str, name: &str) {
        self.edit(|h| {
            let entry = h.as_object_mut().unwrap().remove(tensor).unwrap();
            h[name] = entry;
        });
    }

    /// Changes the shard index.
    pub fn index(&self, edit: impl FnOnce(&mut Value)) {
        let mut index: Value = serde_json::from_slice(&self.read("model.safetensors.index.json")).unwrap();
        edit(&mut index["weight_map"]);
        self.write("model.safetensors.index.json", json!(index).to_string().as_bytes());
    }
}
