"""Runs all stages in order, each only if its inputs or its configuration have changed, then prints the headline numbers
and the path of the report.

python -m stages.pipeline --config configs/demo.yaml
torchrun --nproc_per_node 8 -m stages.pipeline --config configs/demo.yaml
"""

import gc
import importlib
import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from stages import evaluate, labels, manifest
from stages.config import FORCE, STAGES, Options, RunConfig
from stages.launch import connected, refuse_unsupported
from stages.outdated import changed_settings
from stages.pins import pinned, save_pins
from stages.runner import RunFolder, Stage, adopt, main, make_folder, run_stage

OPTIONS: Options = FORCE | {
    "reuse": {
        "metavar": "RUN",
        "help": "A run folder from which the results of stages with the same settings and inputs are taken.",
    }
}


def work(config: RunConfig, force: bool, last: str = STAGES[-1], reuse: str | None = None) -> None:
    """Runs the stages until the last one, after which it prints the headline."""
    from modeling.accelerator import from_main
    from modeling.gpu import refuse_without_gpu
    from modeling.load import autocast_dtype
    from modeling.run import Run
    from stages.cautions import refuse_uneven_batches
    from stages.preflight import check_models

    refuse_unsupported("pipeline")
    if reuse is not None and manifest.read(Path(reuse) / STAGES[0]) is None:
        raise ValueError(f"--reuse {reuse}: not a run folder with a finished {STAGES[0]} stage")
    start = time.perf_counter()
    accelerator = connected(config)
    refuse_without_gpu(config.model, accelerator.device)
    config.ppo.refuse_rounded(autocast_dtype(config.model, accelerator.device) is not None)
    refuse_uneven_batches(config, accelerator.num_processes)
    root = Path(config.runs_folder) / config.run_name
    places = [root, *([] if reuse is None else [Path(reuse)])]
    config, pins = from_main(accelerator, partial(pinned, config, *places))
    from_main(accelerator, partial(check_models, config, whole_chain=True))
    gc.collect()  # the models loaded by the check
    from_main(accelerator, partial(make_folder, root))
    from_main(accelerator, partial(save_pins, pins, root))
    for name in STAGES[: STAGES.index(last) + 1]:
        stage = importlib.import_module(f"stages.{name}").STAGE
        if reuse is not None and not force:
            from_main(accelerator, partial(adopt, stage, config, RunFolder(Path(reuse))))
        run_stage(stage, config, force)
        if name != "data":
            continue
        # What cannot be labelled or evaluated is refused before anything is trained.
        if config.labels.labeler == "llm" and (force or not any(is_made("labels", config, place) for place in places)):
            from_main(accelerator, partial(check_labeler, config, RunFolder(root)))
        if force or not is_made("evaluate", config, root):
            evaluate.external(config)
            evaluate.judging(config, root / "data", Run(accelerator, config.seed, None))
            gc.collect()
    if accelerator.is_main_process and last == STAGES[-1]:
        files = [root / "evaluate" / f"{name}.json" for name in ("headline", "evaluation")]
        headline, evaluation = (json.loads(file.read_text()) for file in files)
        page = root / "report" / "index.html"
        print(f"\n{summary(headline, evaluation)}\n\n{time.perf_counter() - start:.0f} s in total; report: {page}")


def is_made(name: str, config: RunConfig, root: Path) -> bool:
    """Whether a stage and all stages before it have results with these settings, and the files and the data that the
    stage reads have not changed since.
    """
    found = [manifest.read(root / before) for before in STAGES[: STAGES.index(name) + 1]]
    made = found[-1]
    if made is None or any(one is None or changed_settings(one.settings, asdict(config)) for one in found):
        return False
    stage: Stage = importlib.import_module(f"stages.{name}").STAGE
    read = stage.external(config) | {"data": manifest.stage_digest(root / "data")}
    return read.items() <= made.inputs.items()


def check_labeler(config: RunConfig, run: RunFolder) -> None:
    """Raises ValueError if the language model of `labels.llm` cannot be asked."""
    labels.LLMLabeler(config, run)


def summary(headline: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """The report's verdict, and the headline numbers."""
    from reports.verdict import too_few, verdict

    kl = "not estimated, since answers are greedy" if headline["kl"] is None else f"{headline['kl']:z.2f} nats"
    return "\n".join(
        [
            f"{verdict(evaluation)['text']}\n",
            f"reward model, held-out accuracy      {headline['reward_accuracy']:.1%}, best baseline "
            f"{headline['reward_accuracy_best_baseline']:.1%}",
            f"KL to the SFT policy                 {kl}",
            f"perplexity of held-out text          SFT {headline['perplexity_sft']:,.2f}, PPO "
            f"{headline['perplexity_ppo']:,.2f}",
            *filter(None, [too_few(evaluation, {"test": evaluation.get("reward_model")})]),
        ]
    )


if __name__ == "__main__":
    main(
        work,
        "python -m stages.pipeline",
        "Runs all stages in order, each only if something that it depends on changed.",
        options=OPTIONS,
    )
