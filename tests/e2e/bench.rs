//! `server bench` over the demo model: a tiny load, what it writes, and that a seed makes the same load.

use loraplex_tests::{json, run_to_end};
use serde_json::Value;

use super::serve;

fn run(extra: &[&str]) -> (Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (report, picture) = (path("report.json"), path("picture.svg"));
    let mut args = vec!["bench", "--shape", "12/6", "--requests", "4", "--rounds", "2"];
    args.extend(["--concurrency", "2", "--json", &report, "--svg", &picture]);
    args.extend(extra);
    let (code, log) = run_to_end(&args, &[("ALLOW_RUNTIME_LORA_UPDATING", "1")]);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("share of base"), "{log}");
    let picture = std::fs::read_to_string(&picture).unwrap();
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    (json(report.as_ref()), picture)
}

fn check(report: &Value, mixes: &[&str]) {
    assert_eq!(report["schema"], 1);
    assert_eq!((&report["rounds"], &report["requests"]), (&2.into(), &4.into()));
    let found = report["mixes"].as_array().unwrap();
    let names: Vec<&str> = found.iter().map(|mix| mix["mix"].as_str().unwrap()).collect();
    assert_eq!(names, mixes);
    for mix in found {
        let all = &mix["all"];
        assert_eq!((&all["completed"], &all["failed"]), (&8.into(), &0.into()), "{mix}");
        assert_eq!(mix["rounds"].as_array().unwrap().len(), 2);
        let seconds = all["duration_s"].as_f64().unwrap();
        // The lengths were asked for; the server's `usage` must say the same.
        let tokens = |field: &str| (all[field].as_f64().unwrap() * seconds).round();
        assert_eq!(tokens("output_tokens_per_s"), 48.0, "{mix}");
        assert_eq!(tokens("total_tokens_per_s"), 144.0, "{mix}");
        for figure in ["ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"] {
            let at = |p: &str| all[figure][p].as_f64().unwrap();
            assert!(0.0 <= at("median") && at("median") <= at("p90") && at("p90") <= at("p99"));
        }
        let ratio = &mix["ratio_to_base"]["output_tokens_per_s"];
        let at = |field: &str| ratio[field].as_f64().unwrap();
        assert!(at("of_medians") > 0.0 && at("min") <= at("max"), "{mix}");
    }
    assert_eq!(found[0]["ratio_to_base"]["e2e"]["of_medians"], 1.0);
}

#[test]
fn a_server_of_its_own_with_random_adapters() {
    let mixes = ["--mix", "one", "zipf:3", "reload:0.002", "push:0.002"];
    let (report, picture) = run(&[&mixes[..], &["--adapter-rank", "4", "9"]].concat());
    check(&report, &["base", "one", "zipf:3", "reload:0.002", "push:0.002"]);
    for reload in &report["mixes"].as_array().unwrap()[3..] {
        assert!(reload["reloads"].as_u64() > Some(0), "{reload}");
        assert!(reload["reload_ms"]["median"].as_f64() > Some(0.0), "{reload}");
        for stage in ["wait", "read", "pack", "flip"] {
            assert!(reload["reload_stages_ms"][stage].as_f64() > Some(0.0), "{reload}");
        }
    }
    assert_eq!(report["mixes"][1]["reload_ms"], Value::Null);
    assert!(picture.contains("zipf:3") && picture.contains("distinct adapters"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_at_a_rate() {
    let server = serve(&[]).await;
    let url = server.client().base().to_owned();
    let ran = tokio::task::spawn_blocking(move || {
        run(&["--url", &url, "--mix", "distinct:3", "--request-rate", "200"])
    });
    let (report, _) = ran.await.unwrap();
    check(&report, &["base", "distinct:3"]);
    assert_eq!(report["base_model"], "base");
}

#[test]
fn what_cannot_be_measured_is_said() {
    for (args, part) in [
        (&["bench", "--mix", "three"][..], "--mix three"),
        (&["bench", "--shape", "long"], "--shape long"),
        (&["bench", "--rounds", "0"], "--rounds 0"),
        (&["bench", "--request-rate", "0"], "--request-rate 0"),
        (&["bench", "--url", "http://127.0.0.1:9"], "no answer from http://127.0.0.1:9"),
    ] {
        let (code, log) = run_to_end(args, &[]);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(part), "{args:?}: {log}");
    }
}
