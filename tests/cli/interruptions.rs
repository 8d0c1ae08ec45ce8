//! Signals and full disks in the middle of writing: nothing half-written stays.

use crate::support::{checkpoint, command, deepfuse, error_object, names, object, wait};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// A tiny-v2 with a vocabulary that makes it 1 GiB, of zeros that take no disk.
fn large_checkpoint(dir: &Path) {
    let small = checkpoint("tiny-v2");
    let bytes = fs::read(small.join("model.safetensors")).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let vocab = 2_097_152u64;
    let mut end = 0;
    for (name, entry) in header.as_object_mut().unwrap().iter_mut().filter(|(k, _)| *k != "__metadata__") {
        if name.contains("embed_tokens") || name.contains("lm_head") {
            entry["shape"][0] = json!(vocab);
        }
        let elements: u64 = entry["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product();
        assert_eq!(entry["dtype"], "BF16");
        entry["data_offsets"] = json!([end, end + elements * 2]);
        end += elements * 2;
    }
    let header = header.to_string();
    let mut file = File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(small.join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = json!(vocab);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// A child that was stopped in the state that is asked for: while this test waits for the processor, a child may run to its end. Then the next
/// one is tried.
fn caught(start: &dyn Fn() -> Child, state: &dyn Fn(&Child) -> bool) -> Child {
    for _ in 0..20 {
        let mut child = start();
        while child.try_wait().unwrap().is_none() {
            if state(&child) {
                send(&child, libc::SIGSTOP);
                while child.try_wait().unwrap().is_none() && !stopped(&child) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if state(&child) && stopped(&child) {
                    return child;
                }
                send(&child, libc::SIGCONT);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(wait(child).code, 0);
    }
    panic!("20 children ran to their end unseen");
}

/// Fields of a process's `stat` from its state on; empty if it has ended.
fn stat(child: &Child) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    stat.rsplit(')').next().unwrap().split_whitespace().map(str::to_owned).collect()
}

fn stopped(child: &Child) -> bool {
    stat(child).first().is_some_and(|state| state == "T")
}

/// CPU time that a process has used so far, all threads: utime and stime.
fn cpu_ticks(child: &Child) -> u64 {
    stat(child).iter().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
}

/// Whether weights are being written.
fn packing(out: &Path) -> bool {
    let packing = |entry: &String| names(&out.join(entry)).iter().any(|f| f.starts_with("weights"));
    names(out).iter().filter(|n| n.starts_with('.')).any(packing)
}

/// Sends a signal to a stopped child, and lets it go on.
fn wake_with(child: &Child, signal: libc::c_int) {
    send(child, signal);
    send(child, libc::SIGCONT);
}

fn send(child: &Child, signal: libc::c_int) {
    // SAFETY: a plain system call; the child has not been waited for, so its id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

#[test]
fn a_signal_while_weights_are_packed() {
    let (large, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    large_checkpoint(large.path());
    let path = out.path().join("a.dfz");
    let start = || {
        command(&["compile".as_ref(), large.path().as_os_str(), "-o".as_ref(), path.as_os_str(), "--json".as_ref()])
            .spawn()
            .unwrap()
    };
    let anew = || {
        let _ = fs::remove_dir_all(&path); // of a child that came to its end
        start()
    };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let child = caught(&anew, &|_| packing(out.path()));
        wake_with(&child, signal);
        let result = wait(child);
        assert_eq!(result.code, 130, "{result:?}");
        assert_eq!(error_object(&result)["code"], "interrupted");
        assert_eq!(names(out.path()), [""; 0], "something was left");
    }
    // Nobody can clean up after SIGKILL but the next one who writes there.
    let child = caught(&anew, &|_| packing(out.path()));
    wake_with(&child, libc::SIGKILL);
    wait(child);
    assert_eq!(names(out.path()).len(), 1, "the temporary directory");
    let small = || {
        let tiny = checkpoint("tiny-v2");
        let args = ["compile".as_ref(), tiny.as_os_str(), "-o".as_ref(), path.as_os_str(), "--json".as_ref()];
        assert_eq!(object(&deepfuse(&args))["schema"], "deepfuse.compile/1");
        assert_eq!(names(out.path()), ["a.dfz"]);
        fs::read(path.join("manifest.json")).unwrap()
    };
    let before = small();

    // An artifact that is there survives a replacement that does not come to its end.
    let over = || {
        assert_eq!(small(), before);
        start()
    };
    let child = caught(&over, &|_| packing(out.path()));
    wake_with(&child, libc::SIGINT);
    assert_eq!(wait(child).code, 130);
    assert_eq!(names(out.path()), ["a.dfz"]);
    assert_eq!(fs::read(path.join("manifest.json")).unwrap(), before);
}

/// Also while nothing is written, at every stage, fusion and code among them. Measured is CPU time, which a busy machine does not lengthen.
#[test]
fn a_signal_while_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (out, scratch) = (dir.path().join("out"), dir.path().join("scratch"));
    fs::create_dir(&out).unwrap();
    fs::create_dir(&scratch).unwrap();
    let model = checkpoint("deepseek-v2-lite-config");
    let start = |stop: &str| {
        let mut c = command(&["compile".as_ref(), model.as_os_str(), "--shapes-only".as_ref(), "--json".as_ref()]);
        c.arg("-o").arg(out.join("a.dfz")).args(stop.split_whitespace()).env("TMPDIR", &scratch);
        c.spawn().unwrap()
    };
    // SAFETY: a plain system call.
    let second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    let mut whole = start("");
    let mut total = 0;
    while whole.try_wait().unwrap().is_none() {
        total = total.max(cpu_ticks(&whole));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(wait(whole).code, 0);
    fs::remove_dir_all(out.join("a.dfz")).unwrap();
    for (percent, signal, stop) in [
        (10, libc::SIGTERM, ""),
        (40, libc::SIGINT, ""),
        (75, libc::SIGTERM, ""),
        (10, libc::SIGINT, "--stop-after codegen"),
    ] {
        let anew = || {
            let _ = fs::remove_dir_all(out.join("a.dfz"));
            start(stop)
        };
        let mut child = caught(&anew, &|child| cpu_ticks(child) >= total * percent / 100);
        let at = cpu_ticks(&child);
        wake_with(&child, signal);
        let mut end = at;
        while child.try_wait().unwrap().is_none() {
            end = end.max(cpu_ticks(&child));
        }
        let result = wait(child);
        assert_eq!(result.code, 130, "{percent} %: {result:?}");
        assert_eq!(error_object(&result)["code"], "interrupted");
        assert!(end - at < second / 2, "{} ticks after the signal, of {total}", end - at);
        assert_eq!((names(&out), names(&scratch)), (vec![], vec![]), "something was left");
    }
}

#[test]
fn a_limit_of_the_file_size_in_mid_write() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("a.dfz");
    let mut c = command(&[
        "compile".as_ref(),
        checkpoint("tiny-v2").as_os_str(),
        "-o".as_ref(),
        path.as_os_str(),
        "--json".as_ref(),
    ]);
    // SAFETY: setrlimit is async-signal-safe and the structure is on the stack.
    unsafe {
        c.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            if libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let result = wait(c.spawn().unwrap());
    let report = error_object(&result);
    assert_eq!((result.code, report["code"].as_str()), (7, Some("artifact::disk-full")), "{result:?}");
    assert!(report["file"].as_str().unwrap().contains("weights"), "{report}");
    assert_eq!(names(out.path()), [""; 0], "something was left");
}

#[test]
fn a_full_disk_is_seen_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| Command::new("mount").args(args).arg(dir.path()).output();
    let mounted = mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"]);
    if !mounted.as_ref().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: no tmpfs can be mounted here: {mounted:?}");
        return;
    }
    let path = dir.path().join("a.dfz");
    let result = deepfuse(&[
        "compile".as_ref(),
        checkpoint("tiny-v2").as_os_str(),
        "-o".as_ref(),
        path.as_os_str(),
        "--json".as_ref(),
    ]);
    let left = names(dir.path());
    let unmounted = Command::new("umount").arg(dir.path()).status();
    assert!(unmounted.is_ok_and(|s| s.success()));
    let report = error_object(&result);
    assert_eq!((result.code, report["code"].as_str()), (7, Some("artifact::space")), "{result:?}");
    assert!(report["found"].as_str().unwrap().contains("available"), "{report}");
    assert_eq!(left, [""; 0], "something was left");
}
