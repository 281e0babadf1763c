"""OpenAI's client against `specblock serve`, which has to run already.

python examples/openai_client.py --base-url http://127.0.0.1:8000/v1 "Why is the sky blue?"
"""

import argparse

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default="Why is the sky blue?")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none", help="one of the server's --api-key-file")
    parser.add_argument("--max-tokens", type=int, default=64)
    given = parser.parse_args()

    client = OpenAI(base_url=given.base_url, api_key=given.api_key)
    stream = client.chat.completions.create(
        model=next(iter(client.models.list())).id,
        messages=[{"role": "user", "content": given.prompt}],
        max_completion_tokens=given.max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage:
            print(f"\n{chunk.usage.completion_tokens} tokens")


if __name__ == "__main__":
    main()
