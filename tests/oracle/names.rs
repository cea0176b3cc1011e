//! R15: names that look like something else are names, or are refused; none escapes into a metric or the log.

use reqwest::Method;
use serde_json::{Value, json};

use crate::answer::Ask;
use crate::world::{Way, World};

#[tokio::test]
async fn strange_names_are_served_as_they_are_written() {
    let world = World::start(&[]).await;
    let long = "n".repeat(256);
    let names = [
        "BASE",
        "Base ",
        "a:b",
        "a/b",
        "a/b:c@main",
        "%2e%2e%2fa",
        "a%00b",
        "we\"ird",
        "{a=\"b\"}",
        "\u{202e}lairt",
        "דגם",
        "模型",
        "é",
        "e\u{301}",
        "-rf *",
        long.as_str(),
    ];
    let mut generations = Vec::new();
    for name in names {
        generations.push(world.operator.load(name, Way::SamePath).await);
    }
    for (name, generation) in names.iter().zip(&generations) {
        let mut ask = Ask::new(name, &[1, 2, 3], 200);
        ask.stream = true;
        let (answer, metrics) =
            futures::join!(world.ask(ask), async { world.client().get("/metrics").await.text });
        assert_eq!(world.explain(&answer).generations, [*generation], "{name}");
        for line in metrics.lines().filter(|line| !line.starts_with('#')) {
            is_sample(line);
        }
    }
    let list = world.client().get("/v1/lora_adapters").await.json();
    let listed: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| card["name"].as_str().unwrap())
        .collect();
    assert_eq!(listed, names);
    for name in names {
        let path = format!("/v1/lora_adapters/{}", encoded(name));
        let card = world.client().get(&path).await.json();
        assert_eq!(card["name"], name);
        let answer = world.client().request(Method::DELETE, &path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{name}");
    }
}

#[tokio::test]
async fn names_that_are_none_are_refused_and_write_no_lines_of_their_own() {
    let world = World::start(&[]).await;
    world.operator.load("a", Way::SamePath).await;
    let (before, lines) = (listing(&world).await, world.server.logged().lines().count());
    let long = "n".repeat(257);
    for name in
        ["", "base", "/a", "..", "a/../b", "./a", "a\\b", "a\0", "a\nINFO forged", "\u{85}", &long]
    {
        let body = json!({"lora_name": name, "lora_path": "/nowhere", "load_inplace": true});
        let answer = world.client().post("/v1/load_lora_adapter", &body).await;
        assert_eq!(answer.status, 400, "{name:?}: {}", answer.text);
        let answer = world.ask(Ask::new(if name.is_empty() { " " } else { name }, &[1], 1)).await;
        let expected = if name == "base" { 200 } else { 404 };
        assert_eq!(answer.status, expected, "{name:?}: {}", answer.error);
    }
    assert_eq!(listing(&world).await, before);
    let log = world.server.logged();
    let forged = log.lines().skip(lines).find(|line| line.starts_with("INFO forged"));
    assert_eq!(forged, None);
}

async fn listing(world: &World) -> Value {
    world.client().get("/v1/lora_adapters").await.json()["data"][0]["generation"].clone()
}

/// A line of Prometheus' text format: quotes inside labels are escaped.
fn is_sample(line: &str) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    assert!(value.parse::<f64>().is_ok(), "{line}");
    let Some((_, labels)) = series.split_once('{') else { return };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
    let (mut inside, mut escaped) = (false, false);
    for character in labels.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' if inside => escaped = true,
            '"' => inside = !inside,
            _ => assert!(
                inside || "=,_".contains(character) || character.is_alphanumeric(),
                "{line}"
            ),
        }
    }
    assert!(!inside, "{line}");
}

/// A path segment.
fn encoded(name: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let write = |byte: u8| {
        if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    name.bytes().map(write).collect()
}
