"""The renderers package against /inference/v1/generate: the strictest reader of its tokens and log-probabilities.

Usage: renderers_client.py BASE_URL MODEL...
"""

import asyncio
import sys
from types import SimpleNamespace

from openai import AsyncOpenAI
from renderers.client import OverlongPromptError, generate


class Plain:
    """A renderer of prompts that are tokens already."""

    def get_stop_token_ids(self):
        return [0]

    def parse_response(self, token_ids, **_):
        return SimpleNamespace(content=str(token_ids), reasoning_content=None, tool_calls=[], reasoning_complete=True)


async def main(url, *models):
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    seen = set()
    for model in models:
        answer = await generate(
            client=client, renderer=Plain(), messages=[], model=model, prompt_ids=[5, 6, 7, 8],
            sampling_params={"max_tokens": 12, "temperature": 0.0}, cache_salt="step-1", priority=1,
        )
        assert answer["completion_ids"] and len(answer["completion_ids"]) == len(answer["completion_logprobs"])
        assert answer["finish_reason"] in ("stop", "length")
        seen.add(tuple(answer["completion_ids"]))
    assert len(seen) == len(models), seen
    try:
        await generate(client=client, renderer=Plain(), messages=[], model=models[-1], prompt_ids=[5] * 100_000)
        raise SystemExit("a prompt that is too long was sent")
    except OverlongPromptError as error:
        assert error.max_prompt_len < 100_000
    print(f"renderers: {len(models)} models")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
