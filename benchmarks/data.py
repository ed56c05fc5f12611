"""Time and memory of curation: synthetic prompts through every rule, to Parquet files and a report.

python -m benchmarks.data --prompts 1000000 --workers 2
"""

import argparse
import json
import random
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
WORDS = 20_000
FRENCH = (
    "Peux-tu m'expliquer en quelques phrases simples pourquoi le ciel est bleu et comment la lumière du soleil "
    "traverse l'air"
)


def synthetic(count: int) -> Iterator[dict[str, Any]]:
    """`count` prompts of about 200 characters by users with a long tail: one in ten nearly repeats an earlier one, one
    in a hundred has an email address, one in fifty is French, every fourth has a demonstration, and every eighth is a
    labeler's."""
    rng = random.Random(SEED)
    words = vocabulary(rng)
    recent: list[str] = []
    for number in range(count):
        if recent and number % 10 == 9:
            text = rng.choice(recent)[:-4] + " " + rng.choice(words)[:3]
        else:
            text = f"{rng.choice(OPENINGS)} " + " ".join(rng.choices(words, k=rng.randint(10, 45)))
            if number % 100 == 3:
                text += f" and write to {rng.choice(words)}.{rng.choice(words)}@{rng.choice(words)}.com"
            if number % 50 == 7:
                text = f"{FRENCH} {number}"
        if len(recent) < 50_000:
            recent.append(text)
        else:
            recent[rng.randrange(len(recent))] = text
        row: dict[str, Any] = {
            "prompt": text,
            "user_id": f"user {int(count * rng.random() ** 3 / 4)}",
            "source": "labeler" if number % 8 == 0 else "api",
        }
        yield row | ({"completion": " ".join(rng.choices(words, k=30))} if number % 4 == 0 else {})


def vocabulary(rng: random.Random) -> list[str]:
    """Words of the seed set, so that tokens and languages are those of English, and made-up ones."""
    from demo.assets import SEED_FOLDER

    text = " ".join(
        row["prompt"] for file in sorted(SEED_FOLDER.glob("*.jsonl")) for row in map(json.loads, file.open())
    )
    real = sorted({word for word in text.lower().split() if word.isalpha()})
    return [rng.choice(real) for _ in range(WORDS)]


OPENINGS = (
    "Explain how",
    "Write a short poem about",
    "Summarise this:",
    "What is the difference between",
    "List five ways to",
    "Why does",
)


def main() -> None:
    """The command line: writes the rows, curates them, and writes what it measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/data.json"))
    arguments = parser.parse_args()

    from data.annotate import Annotator
    from data.build import build, write
    from data.config import DataConfig
    from data.facts import facts_of
    from data.near_duplicates import distinct
    from data.personal_data import find
    from data.tokenize import count_answer_tokens, count_prompt_tokens
    from modeling.config import ModelConfig
    from modeling.load import base_model_place, load_tokenizer
    from reports.data import write_data_report

    tokenizer = load_tokenizer(base_model_place(ModelConfig(base="embedded")), ModelConfig(base="embedded"))
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as name:
        folder = Path(name)
        answered, bare = folder / "demonstrations.jsonl", folder / "prompts.jsonl"
        with answered.open("w") as first, bare.open("w") as second:
            for row in synthetic(arguments.prompts):
                (first if "completion" in row else second).write(json.dumps(row) + "\n")
        config = DataConfig(
            demonstrations=[str(answered)], prompts=[str(bare)], pretraining=["wikipedia"], workers=arguments.workers
        )
        (folder / "sets").mkdir()
        before, start = peak_gib(), time.perf_counter()
        with HeapPeak() as heap:
            annotator = Annotator(
                config, partial(count_prompt_tokens, tokenizer), partial(count_answer_tokens, tokenizer), find
            )
            built = build(annotator, folder)
        seconds = time.perf_counter() - start
        write(built, folder / "sets")
        written = time.perf_counter()
        write_data_report(facts_of(built, config) | {"agreement": None}, "benchmark", folder / "sets")
        total = time.perf_counter() - start
        alone = time.perf_counter()
        everyone = np.ones(built.pool.count, dtype=bool)
        distinct(lambda: built.pool.keys(everyone), config.near_duplicate_fraction)
        numbers = {
            "prompts": arguments.prompts,
            "workers": arguments.workers,
            "seconds": round(total, 1),
            "seconds_curating": round(seconds, 1),
            "seconds_report": round(start + total - written, 1),
            "seconds_near_duplicates": round(time.perf_counter() - alone, 1),
            "peak_gib": round(peak_gib(), 2),
            "peak_gib_without_mapped_files": round(heap.gib, 2),
            "peak_gib_before": round(before, 2),
            "peak_gib_of_a_worker": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
            "removed": built.removed(),
            "rows": built.sizes(),
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps(numbers, indent=2))


class HeapPeak:
    """The most memory that this process had while the block ran, without the pages of mapped files, which the system
    takes back at will.
    """

    def __init__(self) -> None:
        self.gib = 0.0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            status = Path("/proc/self/status").read_text()
            self.gib = max(self.gib, int(status.split("RssAnon:")[1].split()[0]) / 2**20)

    def __enter__(self) -> "HeapPeak":
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._watcher.join()


def peak_gib() -> float:
    """The most memory that this process ever had, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
