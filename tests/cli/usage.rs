//! Arguments, prompts, and the shape of every verb's output.

use crate::support::{checkpoint, command, compiled, deepfuse, error_object, fails, golden, names, object, wait};
use deepfuse_ir::Bucket;
use std::ffi::OsStr;
use std::fs;
use std::process::Stdio;

#[test]
fn wrong_arguments_are_exit_code_2() {
    let path = compiled("tiny-v2");
    let a = path.to_str().unwrap();
    let v2 = checkpoint("tiny-v2");
    let v2 = v2.to_str().unwrap();
    for args in [
        &["compile"][..],
        &["compil"],
        &["run", a],
        &["run", a, "--ids", "1", "--prompt", "x"],
        &["run", a, "--ids", "1,x"],
        &["run", a, "--ids", "1", "--threads", "0"],
        &["run", a, "--ids", "1", "--top-p", "2"],
        &["run", a, "--ids", "1", "--temperature", "nan"],
        &["verify", a, "--tolerance", "1"],
        &["compile", v2, "--memory", "much"],
        &["compile", v2, "--memory", "-1"],
        &["compile", v2, "--activations", "f64"],
        &["compile", v2, "--disable-rule", "no-such-rule"],
        &["compile", v2, "--stop-after", "fuse", "--bucket", "no-such-bucket"],
        &["compile", v2, "--quant", "int3"],
        &["opt", "x.ir"],
    ] {
        let report = fails(args, 2, "usage");
        assert!(
            report["help"].is_string() || args.contains(&"--top-p") || args.contains(&"--temperature"),
            "{args:?}: {report}"
        );
    }
    fails(&["run", a, "--ids", "1", "--force-bucket", "no-such-bucket"], 2, "runtime::no-bucket");
}

#[test]
fn prompts_that_cannot_be_run() {
    let path = compiled("tiny-python");
    let a = path.to_str().unwrap();
    let report = fails(&["run", a, "--ids", "1,2048"], 3, "runtime::vocabulary");
    assert_eq!((report["expected"].as_str(), report["found"].as_str()), (Some("0 to 2047"), Some("2048")));
    let long = vec!["5"; 4097].join(",");
    let report = fails(&["run", a, "--ids", &long], 3, "runtime::context");
    assert!(
        report["expected"].as_str().unwrap().contains("4096") && report["found"].as_str().unwrap().contains("4097"),
        "{report}"
    );
    let report = fails(&["run", a, "--ids", "1,2,3,4", "--context", "3"], 3, "runtime::context");
    assert!(report["help"].as_str().unwrap().contains("--context"));
    let out = deepfuse(&["run", a, "--ids", "1,2,3", "--context", "5", "--ignore-eos", "--json"]);
    let v = object(&out);
    assert_eq!(
        (v["stop_reason"].as_str(), v["generated_ids"].as_array().map(Vec::len)),
        (Some("context"), Some(3)),
        "{v}"
    );
}

#[test]
fn targets_memory_and_output_paths() {
    let dir = tempfile::tempdir().unwrap();
    let (v2, out) = (checkpoint("tiny-v2"), dir.path().join("a.dfz"));
    let compile = |more: &[&str], exit, code| {
        let args: Vec<&OsStr> = [OsStr::new("compile"), v2.as_os_str(), "-o".as_ref(), out.as_os_str()]
            .into_iter()
            .chain(more.iter().map(OsStr::new))
            .collect();
        fails(&args, exit, code)
    };
    let report = compile(&["--target", "x87"], 4, "target::unknown");
    assert!(report["help"].as_str().unwrap().contains("x86-avx2"));
    let report = compile(&["--memory", "1MiB"], 7, "memory::limit");
    assert!(
        report["expected"].as_str().unwrap().contains("1048576")
            && report["found"].as_str().unwrap().contains("weights"),
        "{report}"
    );
    assert_eq!(names(dir.path()), [""; 0]);

    // Something else at the output: it is left as it is.
    fs::write(&out, "mine").unwrap();
    let report = compile(&[], 3, "artifact::occupied");
    assert!(report["help"].as_str().unwrap().contains("-o"));
    assert_eq!(fs::read(&out).unwrap(), b"mine");
    fs::remove_file(&out).unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.tex"), "mine").unwrap();
    compile(&[], 3, "artifact::occupied");
    assert_eq!((names(dir.path()), names(&out)), (vec!["a.dfz".to_owned()], vec!["thesis.tex".to_owned()]));
    fs::remove_dir_all(&out).unwrap();
    std::os::unix::fs::symlink("/nowhere", &out).unwrap();
    compile(&[], 3, "artifact::occupied");

    let nowhere = dir.path().join("no/such/dir/a.dfz");
    let report = fails(&["compile".as_ref(), v2.as_os_str(), "-o".as_ref(), nowhere.as_os_str()], 6, "artifact::io");
    assert!(report["file"].as_str().unwrap().contains("no/such/dir"), "{report}");
}

#[test]
fn goldens_and_texts_that_cannot_be_used() {
    let path = compiled("tiny-v2");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.safetensors");
    let a = path.to_str().unwrap();
    let f = file.to_str().unwrap();
    let verify = |more: &[&str], exit, code| fails(&[&["verify", a][..], more].concat(), exit, code);
    verify(&["--golden", f], 3, "runtime::input");
    for bytes in [&b""[..], b"12345", b"\xff\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0{}"] {
        fs::write(&file, bytes).unwrap();
        let report = verify(&["--golden", f], 3, "runtime::input");
        assert_eq!(report["file"].as_str(), Some(f));
    }
    verify(&["--golden", checkpoint("tiny-v2").join("model.safetensors").to_str().unwrap()], 3, "runtime::input");
    // Another vocabulary is refused, another model with the same one fails.
    let report = verify(&["--golden", golden("tiny-python").to_str().unwrap()], 3, "runtime::input");
    assert!(report["message"].as_str().unwrap().contains("another model"), "{report}");
    let out = deepfuse(&["verify", a, "--golden", golden("tiny-v3").to_str().unwrap(), "--json"]);
    let verdict = object(&out);
    assert_eq!((out.code, verdict["ok"].as_bool()), (1, Some(false)));
    assert!(
        verdict["checks"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["name"] == "greedy_ids" && c["first_mismatch"]["position"].is_u64()),
        "{verdict}"
    );
    fs::write(&file, "").unwrap();
    let report = verify(&["--text", f], 3, "runtime::input");
    assert!(report["message"].as_str().unwrap().contains("window"), "{report}");
    fs::write(&file, b"\xff\xfe").unwrap();
    verify(&["--text", f], 3, "runtime::input");
    verify(&["--text", "/no/such/file"], 3, "runtime::input");
    verify(&["--text", golden("tiny-v2").to_str().unwrap()], 3, "runtime::input");
}

#[test]
fn explain_refuses_what_it_cannot_tell() {
    let v2 = checkpoint("tiny-v2");
    let v2 = v2.to_str().unwrap();
    let report = fails(&["explain", v2, "--rule", "swigul"], 2, "usage");
    assert!(report["help"].as_str().unwrap().contains("swiglu"), "{report}");
    let report = fails(&["explain", v2, "--bucket", "night"], 2, "usage");
    assert!(report["help"].as_str().unwrap().contains(&Bucket::names()), "{report}");
    fails(&["explain", v2, "--target", "x87"], 4, "target::unknown");
    let path = compiled("tiny-v2");
    fails(&["explain", path.to_str().unwrap(), "--disable-rule", "swiglu"], 2, "usage");
    let out = deepfuse(&["explain", path.to_str().unwrap(), "--rule", "add-norm"]);
    assert!(out.code == 0 && out.stdout.contains("used in all buckets"), "{out:?}");
}

#[test]
fn every_verb_prints_one_object() {
    let path = compiled("tiny-v2");
    let a = path.to_str().unwrap();
    let v2 = checkpoint("tiny-v2");
    let v2 = v2.to_str().unwrap();
    for (args, schema) in [
        (&["compile", v2, "--stop-after", "plan"][..], "deepfuse.text/1"),
        (&["run", a, "--ids", "1,2", "--max-new-tokens", "3"], "deepfuse.run/1"),
        (
            &["run", a, "--prompt", "def", "--max-new-tokens", "3", "--temperature", "1", "--seed", "4"],
            "deepfuse.run/1",
        ),
        (&["inspect", a], "deepfuse.inspect/1"),
        (&["inspect", v2], "deepfuse.inspect/1"),
        (&["explain", a], "deepfuse.explain/1"),
        (&["explain", v2, "--rule", "swiglu", "--bucket", "decode-1"], "deepfuse.explain/1"),
        (&["verify", a], "deepfuse.verify/1"),
        (&["bench", a, "--prompt-tokens", "8", "--new-tokens", "2", "--samples", "1"], "deepfuse.bench/1"),
        (&["doctor"], "deepfuse.doctor/1"),
        (&["doctor", a], "deepfuse.doctor/1"),
        (&["completions", "bash"], "deepfuse.completions/1"),
    ] {
        let out = deepfuse(&[args, &["--json"]].concat());
        assert_eq!((out.code, object(&out)["schema"].as_str()), (0, Some(schema)), "{args:?}: {out:?}");
    }
}

#[test]
fn help_is_complete() {
    let out = deepfuse(&["--help"]);
    assert_eq!(out.code, 0);
    for word in
        ["compile", "run", "inspect", "opt", "verify", "bench", "doctor", "completions", "Exit codes: 0 done", "--json"]
    {
        assert!(out.stdout.contains(word), "{word}");
    }
    for verb in ["compile", "run", "inspect", "opt", "verify", "bench", "doctor", "completions"] {
        let out = deepfuse(&[verb, "--help"]);
        assert_eq!(out.code, 0, "{verb}");
        // Every argument says what it is: no flag stands alone on its line.
        let lines: Vec<&str> = out.stdout.lines().collect();
        for (i, line) in lines
            .iter()
            .enumerate()
            .filter(|(_, l)| l.trim_start().starts_with("--") || l.trim_start().starts_with("-o"))
        {
            let words = line.trim().split("  ").filter(|w| !w.is_empty()).count();
            let next = lines.get(i + 1).is_some_and(|n| n.starts_with("          ") && !n.trim().starts_with('['));
            assert!(words > 1 || next, "{verb}: {line:?} has no text");
        }
    }
    assert_eq!(deepfuse(&["--version"]).stdout.trim(), format!("deepfuse {}", env!("CARGO_PKG_VERSION")));
}

/// Nothing is drawn where there is no terminal, with and without `NO_COLOR`.
#[test]
fn no_terminal_no_escapes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a.dfz");
    let args =
        ["compile".as_ref(), checkpoint("tiny-v2").into_os_string().leak() as &OsStr, "-o".as_ref(), out.as_os_str()];
    let compiled =
        wait(command(&args).env("CLICOLOR_FORCE", "1").env("TERM", "xterm").env("NO_COLOR", "1").spawn().unwrap());
    assert_eq!(compiled.code, 0, "{compiled:?}");
    for text in [&compiled.stdout, &compiled.stderr, &deepfuse(&["--help"]).stdout, &deepfuse(&["run"]).stderr] {
        assert!(!text.contains('\x1b') && !text.contains('\r'), "{text:?}");
    }
    assert!(compiled.stdout.contains("\nnext: ") && compiled.stdout.contains("deepfuse run "), "{compiled:?}");
    assert!(compiled.stderr.starts_with("needs: "), "{compiled:?}");
}

/// `| head`: a reader that goes away ends the output, and an artifact is still written whole or not at all.
#[test]
fn a_reader_that_goes_away() {
    let v2 = checkpoint("tiny-v2");
    let mut child =
        command(&["compile".as_ref(), v2.as_os_str(), "--stop-after".as_ref(), "codegen".as_ref()]).spawn().unwrap();
    drop(child.stdout.take());
    wait(child);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a.dfz");
    let mut child = command(&["compile".as_ref(), v2.as_os_str(), "-o".as_ref(), out.as_os_str()]).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(wait(child).code, 0);
    assert_eq!(names(dir.path()), ["a.dfz"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = wait(command(&["inspect".as_ref(), out.as_os_str()]).stdout(Stdio::from(full)).spawn().unwrap());
    assert_eq!(out.code, 7, "{out:?}");
}

#[test]
fn an_error_is_one_object_even_before_the_arguments_are_known() {
    let report = error_object(&deepfuse(&["--json", "compile"]));
    assert!(report["message"].as_str().unwrap().contains("<CHECKPOINT>"), "{report}");
}
