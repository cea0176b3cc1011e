//! Cards, tokenizer routes, and what operators ask.

use serde_json::{Value, json};

use crate::{get, ok, post};

#[tokio::test]
async fn the_base_comes_first_then_adapters_in_order() {
    let list = get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let cards = list["data"].as_array().unwrap();
    let ids: Vec<_> = cards.iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["demo", "alias", "pirate", "org/shout"]);
    for card in cards {
        assert_eq!((&card["object"], &card["owned_by"]), (&json!("model"), &json!("vllm")));
        assert_eq!(card["max_model_len"], 512);
        assert!(card["permission"][0]["id"].as_str().unwrap().starts_with("modelperm-"));
    }
    assert_eq!((&cards[0]["root"], &cards[0]["parent"]), (&json!("/models/demo"), &Value::Null));
    assert!(cards[0].get("generation").is_none());
    assert_eq!(cards[2]["parent"], "demo");
    assert!(cards[2]["root"].as_str().unwrap().ends_with("adapters/pirate"));
    assert!(cards[3]["generation"].as_u64() > cards[2]["generation"].as_u64());
    assert_eq!(cards[2]["digest"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn one_card_by_its_name() {
    for path in ["/v1/models/org/shout", "/v1/models/org%2Fshout"] {
        assert_eq!(get(path).await.json()["id"], "org/shout");
    }
    let (param, message) = get("/v1/models/nobody").await.error(404);
    assert_eq!(param, "model");
    assert_eq!(message, "The model `nobody` does not exist. Valid aliases: demo, alias.");
}

#[tokio::test]
async fn tokens_and_back() {
    let answer = ok("/tokenize", json!({"prompt": "Hello", "return_token_strs": true})).await;
    assert_eq!(answer["count"], answer["tokens"].as_array().unwrap().len());
    assert_eq!(answer["max_model_len"], 512);
    assert_eq!(answer["token_strs"].as_array().unwrap().len(), answer["count"]);
    let text = ok("/detokenize", json!({"model": "pirate", "tokens": answer["tokens"]})).await;
    assert_eq!(text, json!({"prompt": "Hello"}));
    let chat = json!({"model": "demo", "messages": [{"role": "user", "content": "Hi"}]});
    assert!(ok("/tokenize", chat).await["count"].as_u64().unwrap() > 10);
    post("/tokenize", json!({"model": "nobody", "prompt": "a"})).await.error(404);
    post("/detokenize", json!({"tokens": [1 << 30]})).await.error(400);
}

#[tokio::test]
async fn what_operators_ask() {
    let health = get("/health").await;
    assert_eq!((health.status.as_u16(), health.text.as_str()), (200, ""));
    assert!(get("/version").await.json()["version"].is_string());
    let metrics = get("/metrics").await;
    assert!(metrics.text.contains("vllm:num_requests_running"));
    assert!(metrics.text.ends_with("# EOF\n"));
    let document = get("/openapi.json").await.json();
    assert!(document["paths"]["/v1/chat/completions"]["post"]["requestBody"].is_object());
    assert_eq!(document["info"]["title"], "loraplex");
}
