"""Several answers at a time with asyncio, each printed as it comes.

python examples/streaming.py "What is a verb?" "Name three colours."
"""

import argparse
import asyncio

import specblock

PROMPTS = ["What is a verb?", "Name three colours."]


async def answer(speculator: specblock.Speculator, number: int, prompt: str, most: int) -> None:
    # a handle: left early, it gives back its place and its cache
    async for chunk in speculator.ask(prompt, max_new_tokens=most, temperature=0.7, seed=number):
        print(f"{number}: {chunk.text!r}", flush=True)
    print(f"{number} ended: {chunk.finish_reason}, {chunk.stats.new_tokens} tokens")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    given = parser.parse_args()

    speculator = specblock.load(given.model)
    async with asyncio.TaskGroup() as group:
        for number, prompt in enumerate(given.prompts):
            group.create_task(answer(speculator, number, prompt, given.max_new_tokens))


if __name__ == "__main__":
    asyncio.run(main())
