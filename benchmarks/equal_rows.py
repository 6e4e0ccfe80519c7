"""How many texts come out the same in a batch as alone, in each kind of weights, on the CPU engine.

    python benchmarks/equal_rows.py [--model PATH] [--prompts 48] [--batch 8] [--chars 64]

Every text has its own seed. In float32 all are equal, which tests hold; where weights or arithmetic are rounded, sums
in other company are rounded otherwise, and a draw may then fall differently.
"""

import argparse
from pathlib import Path

import hanmo
from hanmo.generate.text import write
from hanmo.pipeline import SMALL, Pipeline

BEGINNINGS = ("今天", "话说", "春眠不觉晓", "床前明月光，疑是", "第一条", "学而时习之", "【诗】", "那人便道：“")


def main() -> None:
    """Write every prompt alone and in batches, and print the share of equal texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--chars", type=int, default=64)
    given = parser.parse_args()
    prompts = [BEGINNINGS[place % len(BEGINNINGS)] for place in range(given.prompts)]
    seeds = list(range(given.prompts))
    for kind in ("float32", "bfloat16", "int8", "int4"):
        writer = hanmo.open_writer(given.model, weights=kind)
        how = writer.generation_config(top_k=20, max_chars=given.chars, stop=None)

        def texts(places: list[int], writer: Pipeline = writer, how: object = how) -> list[str]:
            chosen = [prompts[place] for place in places]
            found = write(writer.engine, writer.tokenizer, chosen, config=how, seed=[seeds[place] for place in places])
            return [row[0].text for row in found]

        alone = [texts([place])[0] for place in range(given.prompts)]
        together = [
            text
            for start in range(0, given.prompts, given.batch)
            for text in texts(list(range(start, min(start + given.batch, given.prompts))))
        ]
        equal = sum(one == other for one, other in zip(alone, together, strict=True))
        print(f"{kind:9} {equal} of {given.prompts} equal, in batches of {given.batch}", flush=True)


if __name__ == "__main__":
    main()
