//! Adapters by name: the listing, the answers, unknown names.

use serde_json::json;

use super::{ADAPTERS, completion, demo, serve, tokens};

#[tokio::test]
async fn the_base_comes_first_and_adapters_name_it_as_parent() {
    let server = serve(&["--max-model-len", "128"]).await;
    let listing = server.client().get("/v1/models").await.json();
    assert_eq!(listing["object"], "list");
    let cards = listing["data"].as_array().unwrap();
    let ids: Vec<&str> = cards.iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["base", "pirate", "shout", "poet"]);
    for (card, name) in cards[1..].iter().zip(ADAPTERS) {
        assert_eq!(card["parent"], "base");
        assert_eq!(card["root"], demo(&format!("adapters/{name}")));
        assert_eq!(card["max_model_len"], 128);
        assert_eq!(card["digest"].as_str().unwrap().len(), 64);
        assert!(card["generation"].as_u64().unwrap() > 1 << 40);
    }
    assert_eq!(cards[0]["parent"], serde_json::Value::Null);
    let one = server.client().get("/v1/models/poet").await.json();
    assert_eq!(one["id"], "poet");
}

#[tokio::test]
async fn every_adapter_changes_the_answer_and_says_its_name() {
    let server = serve(&[]).await;
    let mut seen = Vec::new();
    for model in ["base", "pirate", "shout", "poet"] {
        let body = completion(model, json!({"return_token_ids": true}));
        let answer = server.client().ok("/v1/completions", &body).await;
        assert_eq!(answer["model"], model);
        seen.push(tokens(&answer));
    }
    for (index, a) in seen.iter().enumerate() {
        assert!(!seen[index + 1..].contains(a), "{seen:?}");
    }
}

#[tokio::test]
async fn an_unknown_name_is_404_and_never_the_base() {
    let server = serve(&[]).await;
    let messages = json!([{"role": "user", "content": "x"}]);
    for (path, body) in [
        ("/v1/completions", json!({"model": "nobody", "prompt": "x"})),
        ("/v1/chat/completions", json!({"model": "nobody", "messages": messages})),
        ("/tokenize", json!({"model": "nobody", "prompt": "x"})),
    ] {
        let answer = server.client().post(path, &body).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text);
        let error = answer.json()["error"].clone();
        assert_eq!((&error["type"], &error["param"]), (&json!("NotFoundError"), &json!("model")));
        assert!(
            error["message"].as_str().unwrap().starts_with("The model `nobody` does not exist.")
        );
    }
}

#[tokio::test]
async fn no_adapter_means_no_lora_operation() {
    let server = serve(&[]).await;
    let operations = async || {
        let text = server.client().get("/metrics").await.text;
        let line = text.lines().find(|line| line.starts_with("loraplex:lora_operations_total"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    server.client().ok("/v1/completions", &completion("base", json!({}))).await;
    assert_eq!(operations().await, 0.0);
    server.client().ok("/v1/completions", &completion("poet", json!({}))).await;
    assert!(operations().await > 0.0);
}
