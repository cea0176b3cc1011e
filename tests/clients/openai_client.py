"""The openai package against a running server: what its users do first must work unchanged.

Usage: openai_client.py BASE_URL BASE_MODEL ADAPTER
"""

import sys

from openai import BadRequestError, NotFoundError, OpenAI


def chat(client, model, **options):
    """One greedy answer to a fixed question."""
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me a story about a fox."}],
        max_tokens=24,
        temperature=0,
        **options,
    )


def check_models(client, base, adapter):
    cards = {card.id: card for card in client.models.list()}
    assert base in cards and adapter in cards, cards
    assert cards[adapter].parent == base
    assert client.models.retrieve(adapter).id == adapter


def check_chat(client, base, adapter):
    answers = {model: chat(client, model) for model in (base, adapter)}
    for model, answer in answers.items():
        assert answer.model == model
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    texts = [answer.choices[0].message.content for answer in answers.values()]
    assert texts[0] != texts[1], "the adapter changes the answer"


def check_streaming(client, model):
    whole = chat(client, model).choices[0].message.content
    text, usage = "", None
    for chunk in chat(client, model, stream=True, stream_options={"include_usage": True}):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole, (text, whole)
    assert usage.completion_tokens > 0


def check_logprobs(client, model):
    answer = chat(client, model, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3
        # Greedy: the chosen token is the best one.
        assert token.logprob == token.top_logprobs[0].logprob <= 0


def check_completions(client, model):
    prompt = "Once upon a time"
    options = {"model": model, "max_tokens": 8, "temperature": 0}
    by_text = client.completions.create(prompt=prompt, logprobs=2, **options)
    assert len(by_text.choices[0].logprobs.token_logprobs) == 8
    both = client.completions.create(prompt=[prompt, prompt], **options)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert {choice.text for choice in both.choices} == {by_text.choices[0].text}
    streamed = client.completions.create(prompt=prompt, stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == by_text.choices[0].text


def check_token_prompts(client, model):
    options = {"model": model, "max_tokens": 8, "temperature": 0}
    echo = client.completions.create(
        prompt="Once upon a time", extra_body={"return_token_ids": True}, **options
    )
    ids = echo.choices[0].prompt_token_ids
    again = client.completions.create(prompt=ids, **options)
    assert again.choices[0].text == echo.choices[0].text
    batch = client.completions.create(prompt=[ids, ids], n=2, seed=1, **options)
    assert len(batch.choices) == 4


def check_errors(client, base):
    for call, error in [
        (lambda: chat(client, "nobody-knows-this"), NotFoundError),
        (lambda: chat(client, base, top_p=7), BadRequestError),
        (lambda: chat(client, base, n=100_000), BadRequestError),
    ]:
        try:
            call()
        except error as caught:
            assert caught.body["message"], caught
        else:
            raise AssertionError(f"no {error.__name__}")


def main():
    url, base, adapter = sys.argv[1:]
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    check_models(client, base, adapter)
    check_chat(client, base, adapter)
    for model in (base, adapter):
        check_streaming(client, model)
        check_logprobs(client, model)
        check_completions(client, model)
        check_token_prompts(client, model)
    check_errors(client, base)
    print("openai client: all checks passed")


if __name__ == "__main__":
    main()
