"""A model of your own, with nothing trained: drafts are copied from the text itself.

python examples/own_model.py path/to/model "Repeat this sentence, then shorten it: ..."
"""

import argparse

import specblock

PROMPT = "Repeat this sentence twice: The quick brown fox jumps over the lazy dog."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder in transformers' layout, GGUF file or hub id")
    parser.add_argument("prompt", nargs="?", default=PROMPT)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    given = parser.parse_args()

    speculator = specblock.load(given.model, drafter="lookup")
    answer = speculator.generate(given.prompt, max_new_tokens=given.max_new_tokens)
    plain = speculator.generate(
        given.prompt, max_new_tokens=given.max_new_tokens, use_drafter=False
    )
    print(answer.text)
    for name, one in (("with lookup", answer), ("plain", plain)):
        stats = one.stats
        print(f"{name}: {stats.tokens_per_second:.1f} tokens/s, τ {stats.accepted_length:.2f}")
    print("identical:", answer.token_ids == plain.token_ids)


if __name__ == "__main__":
    main()
