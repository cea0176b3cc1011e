//! Starts that are refused: one line that says why and what to do.

use std::fs;
use std::path::Path;

use loraplex_tests::run_to_end;

use super::demo;

/// A copy of the demo's `poet` with one file changed.
fn broken(folder: &Path, file: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> String {
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(Path::new(&demo("adapters/poet")).join(name), folder.join(name)).unwrap();
    }
    let path = folder.join(file);
    match change(fs::read(&path).unwrap_or_default()) {
        Some(bytes) => fs::write(path, bytes).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
    format!("broken={}", folder.display())
}

#[test]
fn a_bad_adapter_stops_the_start_with_its_reason() {
    let replace = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from), "{from} in {text}");
            Some(text.replacen(from, to, 1).into_bytes())
        }
    };
    type Change = Box<dyn FnOnce(Vec<u8>) -> Option<Vec<u8>>>;
    let config = "adapter_config.json";
    let weights = "adapter_model.safetensors";
    let cases: Vec<(&str, Change, &str)> = vec![
        (config, Box::new(|_| None), "No adapter found"),
        (config, Box::new(|_| Some(b"{".to_vec())), "adapter_config.json"),
        (config, Box::new(replace("\"LORA\"", "\"IA3\"")), "IA3"),
        (config, Box::new(replace("\"use_dora\": false", "\"use_dora\": true")), "DoRA"),
        (weights, Box::new(|_| None), "doesn't contain tensors"),
        (weights, Box::new(|bytes| Some(bytes[..100].to_vec())), "adapter_model.safetensors"),
        (weights, Box::new(|bytes| Some([&[255; 8][..], &bytes[8..]].concat())), "header"),
    ];
    for (file, change, told) in cases {
        let folder = tempfile::tempdir().unwrap();
        let module = broken(folder.path(), file, change);
        let (code, text) =
            run_to_end(&[&demo("model"), "--port", "0", "--lora-modules", &module], &[]);
        assert_ne!(code, Some(0), "{text}");
        let last = text.lines().last().unwrap_or_default();
        assert!(last.contains(told), "{told:?} in the last line of\n{text}");
    }
}

#[test]
fn other_starts_that_cannot_work() {
    let model = demo("model");
    for (args, env, told) in [
        (vec!["/no/such/model"], vec![], "/no/such/model"),
        (vec![&model, "--tensor-parallel-size", "2"], vec![], "tensor-parallel-size"),
        (vec![&model, "--max-model-len", "1000000"], vec![], "max-model-len"),
        (vec![&model, "--device", "cuda"], vec![], "cuda"),
        (vec![&model, "--no-such-flag"], vec![], "--no-such-flag"),
        (vec![&model, "--threads", "20000"], vec![], "--threads"),
        (vec![&model, "--lora-modules", "nonsense"], vec![], "nonsense"),
        (
            vec![&model],
            vec![("PLUGINS", "lora_filesystem_resolver")],
            "ALLOW_RUNTIME_LORA_UPDATING",
        ),
    ] {
        let (code, text) = run_to_end(&args, &env);
        assert_ne!(code, Some(0), "{args:?}\n{text}");
        assert!(text.contains(told), "{told:?} in\n{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    let (code, help) = run_to_end(&[], &[]);
    assert_eq!(code, Some(0), "the bare command prints its help\n{help}");
    assert!(help.contains("server demo"));
}
