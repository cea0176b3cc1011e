//! Adapters that come and go: vLLM's words and codes, uploads, pins, paths.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use futures::future::{Either, join_all, select};
use futures::stream::{self, StreamExt};
use loraplex_core::Llm;
use loraplex_server::control::paths::PathPolicy;
use serde_json::{Value, json};

use crate::{Answer, app, app_with, bare, call, demo, load, post_request, send};

/// A server of its own: these tests change what is registered.
fn engine() -> Llm {
    load(|config| config.lora.max_rank = 32)
}

fn folder(name: &str) -> String {
    demo("adapters").join(name).display().to_string()
}

fn error(answer: &Answer, status: u16) -> (String, String) {
    assert_eq!(answer.status, status, "{}", answer.text);
    let error = answer.json()["error"].clone();
    let text = |key: &str| error[key].as_str().unwrap().to_owned();
    (text("type"), text("message"))
}

#[tokio::test]
async fn load_and_unload_speak_as_vllm_does() {
    let llm = engine();
    let body = json!({"lora_name": "a", "lora_path": folder("poet"), "lora_int_id": 7, "x": 1});
    let answer = call(&llm, "/v1/load_lora_adapter", body.clone()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text, "Success: LoRA adapter 'a' added successfully.");
    let generation: u64 = answer.headers["x-lora-generation"].to_str().unwrap().parse().unwrap();
    let again = call(&llm, "/v1/load_lora_adapter", body.clone()).await;
    assert_eq!(
        error(&again, 400),
        (
            "InvalidUserInput".into(),
            "The lora adapter 'a' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.".into()
        )
    );
    for yes in [json!(true), json!("true"), json!(1), json!("yes")] {
        let mut body = body.clone();
        body["load_inplace"] = yes;
        let answer = call(&llm, "/v1/load_lora_adapter", body).await;
        let newer: u64 = answer.headers["x-lora-generation"].to_str().unwrap().parse().unwrap();
        assert!(newer > generation);
    }
    // The aliases at the root replace without being told.
    for path in ["/load_lora_adapter", "/skyrl/v1/load_lora_adapter"] {
        assert_eq!(call(&llm, path, body.clone()).await.status, 200);
    }
    let mut told = body.clone();
    told["load_inplace"] = json!(false);
    error(&call(&llm, "/load_lora_adapter", told).await, 400);

    let unload = json!({"lora_name": "a", "lora_int_id": 99, "wait": true});
    let answer = call(&llm, "/v1/unload_lora_adapter", unload.clone()).await;
    assert_eq!(answer.text, "Success: LoRA adapter 'a' removed successfully.");
    let gone = call(&llm, "/v1/unload_lora_adapter", unload).await;
    let cannot = "The lora adapter 'a' cannot be found.".to_owned();
    assert_eq!(error(&gone, 404), ("NotFoundError".into(), cannot));
}

#[tokio::test]
async fn what_cannot_be_loaded_is_said_and_changes_nothing() {
    let llm = engine();
    let before = bare(&llm, "GET", "/v1/lora_adapters").await.text;
    let bad = tempfile::tempdir().unwrap();
    std::fs::write(bad.path().join("adapter_config.json"), "{").unwrap();
    std::fs::write(bad.path().join("adapter_model.safetensors"), "xxxxxxxxxxxx").unwrap();
    let bad = bad.path().display().to_string();
    let path = "/v1/load_lora_adapter";
    for (body, status, kind, part) in [
        (
            json!({"lora_name": "", "lora_path": "x"}),
            400,
            "InvalidUserInput",
            "Both 'lora_name' and",
        ),
        (
            json!({"lora_name": "x", "lora_path": ""}),
            400,
            "InvalidUserInput",
            "Both 'lora_name' and",
        ),
        (
            json!({"lora_name": "demo", "lora_path": "x"}),
            400,
            "InvalidUserInput",
            "conflicts with a served",
        ),
        (
            json!({"lora_name": "alias", "lora_path": "x", "load_inplace": true}),
            400,
            "InvalidUserInput",
            "conflicts",
        ),
        (
            json!({"lora_name": "x", "lora_path": "/not/an/adapter"}),
            404,
            "NotFoundError",
            "Loading lora x failed: No adapter found for /not/an/adapter",
        ),
        (
            json!({"lora_name": "x", "lora_path": bad}),
            400,
            "BadRequestError",
            "Call to add_lora method failed: adapter_model.safetensors",
        ),
        (
            json!({"lora_name": "../x", "lora_path": folder("poet")}),
            400,
            "BadRequestError",
            "cannot be an adapter's name",
        ),
        (json!({"lora_name": "x"}), 400, "BadRequestError", "lora_path"),
        (json!({"lora_name": 1, "lora_path": "x"}), 400, "BadRequestError", "string"),
        (
            json!({"lora_name": "x", "lora_path": "x", "load_inplace": "maybe"}),
            400,
            "BadRequestError",
            "boolean",
        ),
        (
            json!({"lora_name": "x", "lora_path": "x", "policy_version": -1}),
            400,
            "BadRequestError",
            "policy_version",
        ),
        (json!([]), 400, "BadRequestError", "JSON object"),
        (json!(["x", folder("poet"), true]), 400, "BadRequestError", "JSON object"),
    ] {
        let answer = call(&llm, path, body.clone()).await;
        let (found, message) = error(&answer, status);
        assert_eq!(found, kind, "{body}");
        assert!(message.contains(part), "{body}: {message}");
    }
    assert_eq!(bare(&llm, "GET", "/v1/lora_adapters").await.text, before);
}

#[tokio::test]
async fn a_field_that_is_missing_is_named() {
    let llm = engine();
    for (path, body, param) in [
        ("/v1/unload_lora_adapter", json!({}), "lora_name"),
        ("/v1/load_lora_adapter", json!({"lora_name": "x"}), "lora_path"),
        ("/inference/v1/generate", json!({}), "token_ids"),
        ("/adapters", json!({"name": "x"}), "src"),
    ] {
        let (found, message) = call(&llm, path, body).await.error(400);
        assert_eq!((found, message), (json!(param), format!("`{param}` is missing")));
    }
}

#[tokio::test]
async fn a_trainer_learns_what_its_push_became() {
    let llm = engine();
    let push = |expected: u64, id: &str| {
        let body = json!({
            "lora_name": "policy", "lora_path": folder("poet"), "load_inplace": true,
            "expected_generation": expected, "operation_id": id, "policy_version": 12,
        });
        let mut request = post_request("/v1/load_lora_adapter", &body);
        request.headers_mut().insert("accept", "application/json".parse().unwrap());
        send(app(&llm, &[], &[]), request)
    };
    let first = push(0, "a").await.json();
    assert_eq!((&first["success"], &first["policy_version"]), (&json!(true), &json!(12)));
    assert_eq!(first["digest"].as_str().unwrap().len(), 64);
    assert!(first["matched_modules"].as_u64() > Some(0) && first["bytes"].as_u64() > Some(0));
    assert!(first["timings_ms"]["read"].as_f64() > Some(0.0));
    assert_eq!(push(0, "a").await.json()["repeated"], true);
    let stale = push(0, "b").await;
    assert_eq!(error(&stale, 409).0, "ConflictError");
    let second = push(first["generation"].as_u64().unwrap(), "c").await.json();
    assert_eq!((&second["replaced"], &second["unchanged"]), (&first["generation"], &json!(true)));
}

#[tokio::test]
async fn weights_come_in_the_request() {
    let llm = engine();
    let read = |file| std::fs::read(demo("adapters/shout").join(file)).unwrap();
    let form = |parts: &[(&str, Vec<u8>)]| {
        let mut body = Vec::new();
        for (name, bytes) in parts {
            let head = format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n");
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(bytes);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--b--\r\n");
        body
    };
    let put = |name: &str, body: Vec<u8>| {
        let request = Request::put(format!("/v1/lora_adapters/{name}?policy_version=3"))
            .header("content-type", "multipart/form-data; boundary=b")
            .header("accept", "application/json");
        send(app(&llm, &[], &[]), request.body(body.into()).unwrap())
    };
    let config = ("config", read("adapter_config.json"));
    let weights = ("weights", read("adapter_model.safetensors"));
    let answer = put("org%2Fnew", form(&[config.clone(), weights.clone()])).await.json();
    assert_eq!((&answer["lora_name"], &answer["policy_version"]), (&json!("org/new"), &json!(3)));
    let card = bare(&llm, "GET", "/v1/lora_adapters/org%2Fnew").await.json();
    assert_eq!((&card["source"], &card["tier"]), (&json!("upload"), &json!("host")));
    let again = put("org%2Fnew", form(&[config.clone(), weights.clone()])).await.json();
    assert_eq!((&again["replaced"], &again["unchanged"]), (&answer["generation"], &json!(true)));
    let shouted = json!({"model": "org/new", "prompt": "Hello", "max_tokens": 4, "temperature": 0});
    let by_folder =
        json!({"model": "org/shout", "prompt": "Hello", "max_tokens": 4, "temperature": 0});
    let text = |answer: Answer| answer.json()["choices"][0]["text"].clone();
    assert_eq!(
        text(call(&llm, "/v1/completions", shouted).await),
        text(call(&llm, "/v1/completions", by_folder).await)
    );
    for (parts, status) in [
        (vec![config.clone()], 400),
        (vec![weights.clone()], 400),
        (vec![config.clone(), ("weights", b"nothing".to_vec())], 400),
        (vec![("config", vec![b' '; (1 << 20) + 1]), weights.clone()], 413),
        (vec![config.clone(), config.clone(), weights.clone()], 400),
        (vec![config.clone(), weights.clone(), weights.clone()], 400),
        (vec![config, weights, ("other", Vec::new())], 400),
    ] {
        error(&put("x", form(&parts)).await, status);
    }
    error(&put("demo", form(&[])).await, 400);
}

#[tokio::test]
async fn pins_listings_and_sagemaker() {
    let llm = engine();
    let body = json!({"name": "sm", "src": folder("poet"), "pin": true});
    assert_eq!(call(&llm, "/adapters", body.clone()).await.text, "Adapter sm registered");
    error(&call(&llm, "/adapters", body).await, 400);
    let list = bare(&llm, "GET", "/v1/lora_adapters").await.json();
    let names: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| card["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["pirate", "org/shout", "sm"]);
    let card = &list["data"][2];
    assert_eq!((&card["pinned"], &card["source"]), (&json!(true), &json!("operator")));
    assert_eq!(bare(&llm, "DELETE", "/v1/lora_adapters/sm/pin").await.json()["pinned"], false);
    assert_eq!(bare(&llm, "PUT", "/v1/lora_adapters/sm/pin").await.json()["pinned"], true);
    error(&bare(&llm, "PUT", "/v1/lora_adapters/nobody/pin").await, 404);
    assert_eq!(bare(&llm, "DELETE", "/adapters/sm").await.text, "Adapter sm unregistered");
    error(&bare(&llm, "DELETE", "/adapters/sm").await, 404);
    assert_eq!(bare(&llm, "DELETE", "/v1/lora_adapters/pirate?wait=true").await.status, 200);
    error(&bare(&llm, "GET", "/v1/lora_adapters/pirate").await, 404);
}

#[tokio::test]
async fn the_routes_are_the_operators() {
    let llm = engine();
    let body = json!({"lora_name": "a", "lora_path": folder("poet")});
    let path = "/v1/load_lora_adapter";
    // Off, the routes are not there; the word "adapter" would say that they are.
    let off = app_with(&llm, |serving| serving.updating = false);
    let answer = send(off, post_request(path, &body)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["detail"].as_str()),
        (404, Some("Not Found"))
    );
    assert!(!answer.text.contains("adapter"));
    let closed = app_with(&llm, |serving| serving.paths = PathPolicy::Below(Vec::new()));
    let (_, message) = error(&send(closed, post_request(path, &body)).await, 400);
    assert!(message.contains("LORA_ALLOWED_PATHS"), "{message}");
    let keyed = send(app(&llm, &["u"], &["a"]), post_request(path, &body)).await;
    assert_eq!(keyed.status, 401);
    let mut with_user_key = post_request(path, &body);
    with_user_key.headers_mut().insert("authorization", "Bearer u".parse().unwrap());
    assert_eq!(send(app(&llm, &["u"], &["a"]), with_user_key).await.status, 403);
}

#[tokio::test]
async fn queries_take_booleans_as_python_writes_them() {
    let llm = engine();
    let wait = async |value: &str| {
        let body = json!({"lora_name": "a", "lora_path": folder("poet"), "load_inplace": true});
        call(&llm, "/v1/load_lora_adapter", body).await;
        bare(&llm, "DELETE", &format!("/v1/lora_adapters/a?wait={value}")).await
    };
    for value in ["True", "False", "true", "false", "1", "0", "yes", "no", "on", "off"] {
        assert_eq!(wait(value).await.status, 200, "{value}");
        let pause = format!("/pause?mode=keep&clear_cache={value}");
        assert_eq!(bare(&llm, "POST", &pause).await.status, 200, "{value}");
        let put = format!("/v1/lora_adapters/a?pinned={value}");
        assert!(bare(&llm, "PUT", &put).await.error(400).1.contains("boundary"), "{value}");
    }
    assert_eq!(wait("maybe").await.error(400).0, "wait");
}

#[tokio::test]
async fn what_is_refused_before_a_handler_runs_is_json_too() {
    let llm = engine();
    for (method, path, param) in [
        ("POST", "/pause?clear_cache=maybe", json!("clear_cache")),
        ("POST", "/pause?lease_seconds=soon", json!("lease_seconds")),
        ("POST", "/pause?mode=keep&mode=wait", Value::Null),
        ("POST", "/sleep?level=deep", json!("level")),
        ("PUT", "/v1/lora_adapters/a?policy_version=-1", json!("policy_version")),
        ("PUT", "/v1/lora_adapters/a", Value::Null),
        ("PUT", "/v1/lora_adapters/%ff", Value::Null),
        ("GET", "/v1/lora_adapters/%ff", Value::Null),
        ("DELETE", "/v1/lora_adapters/%ff?wait=1", Value::Null),
        ("PUT", "/v1/lora_adapters/%ff/pin", Value::Null),
        ("DELETE", "/adapters/%ff", Value::Null),
        ("GET", "/v1/models/%ff", Value::Null),
        ("GET", "/health?details=1&details=2", Value::Null),
    ] {
        let answer = bare(&llm, method, path).await;
        assert_eq!(answer.error(400).0, param, "{path} {}", answer.text);
        assert_eq!(answer.json()["error"]["type"], "BadRequestError");
    }
    let huge = Request::post("/pause_generation").body(vec![b' '; (32 << 20) + 1].into()).unwrap();
    send(app(&llm, &[], &[]), huge).await.error(413);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_upload_ends_and_a_slow_one_does_not() {
    let llm = engine();
    let put = |body: Body| {
        let request = Request::put("/v1/lora_adapters/a")
            .header("content-type", "multipart/form-data; boundary=b");
        send(app(&llm, &[], &[]), request.body(body).unwrap())
    };
    let head =
        |name: &str| format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n");
    let sent = |chunks: Vec<String>| stream::iter(chunks.into_iter().map(Ok::<_, Infallible>));
    let stalled = |chunks| Body::from_stream(sent(chunks).chain(stream::pending()));
    let hour = Duration::from_secs(3600);
    // As many as there are places for uploads, and more.
    let uploads = [(); 5].map(|()| put(stalled(vec![head("config"), "{".into()])));
    for answer in tokio::time::timeout(hour, join_all(uploads)).await.unwrap() {
        let (kind, message) = error(&answer, 408);
        assert_eq!(kind, "BadRequestError");
        assert!(message.contains("120 s"), "{message}");
    }
    // All of it takes longer than a stall may.
    let chunks = vec![head("config"), "{".into(), "}".into(), "\r\n".into(), head("other")];
    let slow = sent(chunks).then(async |chunk| {
        tokio::time::sleep(Duration::from_secs(100)).await;
        chunk
    });
    let start = tokio::time::Instant::now();
    assert!(error(&put(Body::from_stream(slow)).await, 400).1.contains("`weights`"));
    assert!(start.elapsed() >= Duration::from_secs(500));
    // What has sent nothing takes nobody's place.
    tokio::time::resume();
    let silent = join_all([(); 5].map(|()| put(stalled(Vec::new()))));
    let other = put(format!("{}x\r\n--b--\r\n", head("other")).into());
    match select(Box::pin(silent), Box::pin(other)).await {
        Either::Left(_) => panic!("they have sent nothing"),
        Either::Right((answer, _)) => assert!(error(&answer, 400).1.contains("`weights`")),
    }
}
