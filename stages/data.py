"""The data stage: three sets of prompts from the sources, split by user, with a count of what each rule removed.

python -m stages.data --config configs/demo.yaml
"""

import json
from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.manifest import file_digest
from stages.runner import RunFolder, Stage, stage_main


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Builds and writes the sets."""
    from data.build import build, write
    from data.tokenize import encode_completion, encode_prompt
    from modeling.load import base_model_place, load_tokenizer

    tokenizer = load_tokenizer(base_model_place(config.model), config.model)
    built = build(
        config.data,
        lambda prompt: len(encode_prompt(tokenizer, prompt)),
        lambda completion: len(encode_completion(tokenizer, completion)),
    )
    write(built, out)
    sizes = built.sizes()
    report = {"rows": sizes, "removed": built.removed, "skipped_rows": built.skipped_rows}
    (out / "counts.json").write_text(json.dumps(report, indent=2) + "\n")
    for rule, count in built.removed.items():
        if count:
            print(f"data: {count} prompts removed: {rule}")
    for sentence in built.skipped_rows[:5]:
        print(f"data: skipped {sentence}")
    if len(built.skipped_rows) > 5:
        print(f"data: skipped {len(built.skipped_rows) - 5} more malformed rows, listed in counts.json")
    shown = ("sft_train", "rm_train", "rl_train", "rm_valid", "rm_test")
    return {name: sizes[name] for name in shown} | {"removed": sum(built.removed.values()), "skipped": len(built.skipped_rows)}


def external(config: RunConfig) -> dict[str, str]:
    """Digests of the files that users brought."""
    from data.sources import source_files

    named = [*config.data.demonstrations, *config.data.prompts, *config.data.rankings, *config.data.pretraining]
    files = [file for name in named if name != "wikipedia" for file in source_files(name)]
    return {str(file): file_digest(file) for file in files}


STAGE = Stage("data", sections=("data", "model"), after=(), work=work, external=external)

if __name__ == "__main__":
    stage_main(STAGE, "Builds the SFT, RM and RL prompt sets.")
