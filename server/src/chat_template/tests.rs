//! Templates against what transformers makes of them.

use serde_json::{Value, json};

use super::*;

fn conversation(messages: Value) -> Conversation {
    Conversation {
        messages: serde_json::from_value(messages).unwrap(),
        add_generation_prompt: true,
        ..Conversation::default()
    }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, vec![("bos_token".into(), "<s>".into())]).unwrap()
}

fn fixture(path: &str) -> Value {
    let path = format!("{}/../tests/fixtures/smollm2/{path}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn golden_prompts_of_smollm2() {
    let config = fixture("tokenizer/tokenizer_config.json");
    let template = template(config["chat_template"].as_str().unwrap());
    assert_eq!(template.content_form(), ContentForm::Text);
    let golden = fixture("golden/base.json");
    let cases = golden["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let prompt = template.render(&conversation(case["messages"].clone())).unwrap();
        assert_eq!(prompt, case["prompt"].as_str().unwrap());
    }
}

#[test]
fn what_templates_use() {
    let messages = json!([{"role": "user", "content": " Hi "}]);
    for (source, prompt) in [
        ("{{ bos_token }}{{ messages[0].content.strip() }}", "<s>Hi"),
        ("{% for m in messages %}\n  {%- if m.role == 'user' %}u{% endif %}\n{% endfor %}", "u"),
        ("{{ none }}|{{ true }}|{{ false }}|{{ missing }}|{{ 1.0 }}", "None|True|False||1.0"),
        ("{{ messages[0]['content'].split('i')[0] ~ messages[-1]['role'][1:] }}", " Hser"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        (
            "{% for k, v in messages[0].items() %}{{ k }},{% if k == 'role' %}{% continue %}{% endif %}{{ v }}{% endfor %}",
            "role,content, Hi ",
        ),
        ("{% if tools is none and not documents %}no{% endif %}", "no"),
        ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " Hi "}"#),
        ("a{% generation %}\nb{%- endgeneration -%}  c", "abc"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(1) }}{{ '<&>' }}", "[1]<&>"),
    ] {
        assert_eq!(template(source).render(&conversation(messages.clone())).unwrap(), prompt);
    }
}

#[test]
fn the_final_message_stays_open() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}\
                  {% if add_generation_prompt %}<assistant>{% endif %}";
    let messages =
        json!([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ab "}]);
    let conversation = Conversation {
        add_generation_prompt: false,
        continue_final_message: true,
        ..conversation(messages)
    };
    assert_eq!(template(source).render(&conversation).unwrap(), "<user>ab</s><assistant>ab");
    let silent = template("nothing").render(&conversation).unwrap_err();
    assert!(silent.contains("continue_final_message"));
}

#[test]
fn variables_do_not_shadow_the_conversation() {
    let variables = json!({"messages": "x", "enable_thinking": false, "bos_token": "y"});
    let Value::Object(variables) = variables else { unreachable!() };
    let conversation =
        Conversation { variables, ..conversation(json!([{"role": "user", "content": "Hi"}])) };
    let source = "{{ messages[0].content }}{{ bos_token }}{{ enable_thinking is false }}";
    assert_eq!(template(source).render(&conversation).unwrap(), "Hi<s>True");
}

#[test]
fn parts_are_recognised() {
    for source in [
        "{% for m in messages %}{%- for part in m['content'] -%}{% endfor %}{% endfor %}",
        "{% for part in message.content %}{% endfor %}",
        "{% for x in content %}{% endfor %}",
    ] {
        assert_eq!(content_form(source), ContentForm::Parts, "{source}");
    }
    assert_eq!(
        content_form("{% for m in messages %}{{ m.content }}{% endfor %}"),
        ContentForm::Text
    );
}

#[test]
fn a_template_can_refuse_and_cannot_run_away() {
    let conversation = conversation(json!([{"role": "user", "content": "Hi"}]));
    let refusal = template("{{ raise_exception('roles must alternate') }}").render(&conversation);
    assert_eq!(refusal.unwrap_err(), "roles must alternate");
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(template(endless).render(&conversation).unwrap_err().contains("fuel"));
    assert!(template("{% include 'x' %}").render(&conversation).is_err());
    assert!(ChatTemplate::new("{% if %}", vec![]).is_err());
}
