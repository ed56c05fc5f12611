"""Runs one stage: locks the run folder, decides whether anything is to be done, calls the stage, writes the manifest.

A stage works in `<run>/<stage>.partial`, which is renamed to `<run>/<stage>` when it is complete. The partial folder of
an interrupted run is passed to the stage again if nothing that it depends on has changed, so that it can resume. A kill
at any point loses nothing: folders are renamed as a whole, and `tidy` completes an interrupted replacement.
"""

import contextlib
import datetime
import functools
import io
import json
import operator
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from modeling.disk import (
    copy_folder,
    discard,
    discarded,
    locked_file,
    make_writable,
    share_weights,
    sync,
    write_whole,
)
from stages import manifest
from stages.config import DRY_RUN, FORCE, SIDE_STAGES, STAGES, Options, RunConfig, parse_config
from stages.errors import InUseError, replace_missing_outputs, report, say
from stages.headline import summary
from stages.interrupt import STOP, end_process
from stages.launch import check_launch, connected, description, refuse_unsupported
from stages.outdated import difference, outdated
from stages.pins import pin
from stages.ranks import count, failures, own_rank
from stages.unfinished import SESSION, begin_session, refuse_to_replace_inputs, resumable


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    root: Path

    def stage(self, name: str) -> Path:
        """The folder of a stage's finished result."""
        return self.root / name

    def partial(self, name: str) -> Path:
        """The folder in which a stage works until its result is complete."""
        return self.root / f"{name}.partial"


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    sections: tuple[str, ...]
    """Parts of the configuration that the result depends on, by dotted name."""
    after: tuple[str, ...]
    """Stages whose results it reads."""
    work: Callable[[RunConfig, RunFolder, Path], dict[str, Any]]
    """Runs the stage: (config, run folder, folder to write to) -> headline numbers."""
    external: Callable[[RunConfig], dict[str, str]] = lambda config: {}
    """Digests of inputs from outside the run."""
    parallel: bool = False
    """Whether all processes run the stage, or only the first."""
    for_people: tuple[str, ...] = ()
    """Files and folders of the result that no later stage reads: changing them does not make later stages run again."""
    scratch: tuple[str, ...] = ()
    """Folders that it needs to resume; removed once the result is complete."""
    discardable: tuple[str, ...] = ()
    """The same for folders whose loss costs only minutes: they are discarded if the configuration has changed, while
    those of `scratch` stop the run.
    """
    hash_exclude: tuple[str, ...] = ()
    """Settings that do not change the result: the fingerprint omits them, so a run can resume with other values."""
    rankings_file: Callable[[RunConfig], Path | None] = lambda config: None
    """The web app's database in the run folder, if the result depends on people's rankings."""
    dry_run: Callable[[RunConfig], None] | None = None
    """Prints what the stage would do; None if it has no --dry_run."""

    @property
    def temporary(self) -> tuple[str, ...]:
        """All folders that are not part of the result."""
        return (*self.scratch, *self.discardable)


def run_stage(stage: Stage, config: RunConfig, force: bool = False) -> dict[str, Any]:
    """Brings a stage's result up to date and returns its headline numbers.

    Raises ValueError when an earlier stage has no result, or another process uses the run folder.
    """
    from modeling.accelerator import from_main, main_alone
    from modeling.tracking import CLOCKWORK

    STOP.check()
    refuse_unsupported(stage.name)
    accelerator = connected(config)
    if stage.parallel:  # the stages that run models
        from modeling.gpu import refuse_without_gpu

        refuse_without_gpu(config.model, accelerator.device)
    run = RunFolder(Path(config.runs_folder) / config.run_name)
    check_launch(config, stage.name, accelerator)
    with locked(run.root) if accelerator.is_main_process else contextlib.nullcontext():
        config = from_main(accelerator, functools.partial(pin, config, run.root))
        plan = from_main(accelerator, lambda: prepare(stage, config, run, force))
        if plan.done is not None:
            if accelerator.is_main_process:
                print(f"{stage.name}: unchanged, kept {run.stage(stage.name)}", flush=True)
            return plan.done
        started, clock, cpu = now(), time.perf_counter(), time.process_time()
        manifest.reset_peak_memory()
        if accelerator.is_main_process:
            resuming = plan.resumed and any(any((plan.partial / name).glob("*")) for name in stage.temporary)
            where = f" on {description(config, accelerator)}" if stage.parallel else ""
            print(f"{stage.name}: {'resuming' if resuming else 'running'}{where}", flush=True)
        headline: dict[str, Any] = {}
        with contextlib.nullcontext() if stage.parallel else main_alone(accelerator):
            if stage.parallel or accelerator.is_main_process:
                headline = stage.work(config, run, plan.partial)
            STOP.check()  # The result may be incomplete if an interrupt was swallowed.
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            seconds = time.perf_counter() - clock
            share_weights(plan.partial)
            ignored = (*CLOCKWORK, FINGERPRINT, SESSION, *stage.temporary, *stage.for_people)
            manifest.Manifest(
                stage=stage.name,
                fingerprint=plan.fingerprint,
                config=asdict(config),
                settings=plan.settings,
                inputs=plan.inputs,
                outputs=manifest.output_records(plan.partial, ignored=ignored),
                headline=headline,
                seed=config.seed,
                world_size=accelerator.num_processes,
                device=str(accelerator.device),
                started=started,
                ended=now(),
                seconds=round(plan.earlier_seconds + seconds, 1),
                cpu_seconds=round(time.process_time() - cpu, 1),
                peak_memory_gib=manifest.peak_memory_gib(),
            ).write(plan.partial)
            put_in_place(plan.partial, run.stage(stage.name), stage.temporary)
            print(f"{stage.name}: done in {seconds:.0f} s  {summary(headline)}", flush=True)
        return from_main(accelerator, lambda: headline)


FINGERPRINT = "fingerprint"
"""File in a partial folder: its fingerprint, and on a second line the settings and inputs as JSON."""


@dataclass
class Plan:
    """The result of `prepare`: a finished result, or a folder to work in."""

    done: dict[str, Any] | None
    partial: Path
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    resumed: bool
    earlier_seconds: float = 0.0
    """Of the sessions that were interrupted."""


def prepare(stage: Stage, config: RunConfig, run: RunFolder, force: bool) -> Plan:
    """Compares the fingerprint of configuration and inputs with that of the finished result, and prepares the partial
    folder. Raises ValueError if earlier results do not belong together (stages/outdated.py).

    With `force` the stage starts over. If that run is interrupted, the next one without `force` resumes it, even if
    there is a finished result.
    """
    whole = asdict(config)
    for name in stage.hash_exclude:
        *path, last = name.split(".")
        functools.reduce(operator.getitem, path, whole).pop(last)
    settings = {name: functools.reduce(operator.getitem, name.split("."), whole) for name in (*stage.sections, "seed")}
    inputs = {name: manifest.stage_digest(run.stage(name)) for name in stage.after} | stage.external(config)
    for line in outdated(run.root, [name for name in inputs if name in (*STAGES, *SIDE_STAGES)], asdict(config)):
        print(f"{stage.name}: warning: {line}", flush=True)
    fingerprint = manifest.digest_of({"stage": stage.name, "config": settings, "inputs": inputs})
    final, partial = run.stage(stage.name), run.partial(stage.name)
    tidy(final, stage.temporary)
    complete = manifest.read(partial)
    if complete is not None and complete.fingerprint == fingerprint and not force:
        put_in_place(partial, final, stage.temporary)
    text = (partial / FINGERPRINT).read_text() if (partial / FINGERPRINT).is_file() else ""
    recorded, _, made = text.partition("\n")
    forced = f"{fingerprint} forced"
    finished = manifest.read(final)
    if finished is not None and finished.fingerprint == fingerprint and not force and recorded != forced:
        return Plan(finished.headline, partial, fingerprint, settings, inputs, False)
    resumed = recorded in (fingerprint, forced) and not force
    if not resumed:
        if not force and resumable(stage, run):
            raise ValueError(
                f"{partial} holds the checkpoints of an interrupted run with {difference(made, whole, inputs)}: to "
                "resume it, run the command with those; to start over, remove that folder; to keep both, use another "
                "run_name"
            )
        if finished is not None and not force:
            refuse_to_replace_inputs(stage, run)
        discard(partial)
        partial.mkdir(parents=True)
        now = json.dumps({"settings": settings, "inputs": inputs})
        write_whole(partial / FINGERPRINT, f"{forced if force else fingerprint}\n{now}".encode())
    return Plan(None, partial, fingerprint, settings, inputs, resumed, begin_session(partial))


def adopt(stage: Stage, config: RunConfig, other: RunFolder) -> None:
    """Takes over a stage's result from another run with the same settings and inputs, with the people's rankings that
    it was made from. Results and rankings that this run already has are kept.
    """
    run = RunFolder(Path(config.runs_folder) / config.run_name)
    theirs = other.stage(stage.name)
    if any(manifest.read(run.stage(name)) is None for name in stage.after):
        return  # its inputs will differ from those of the other run
    rankings = stage.rankings_file(config)
    if rankings is not None and ((run.root / rankings).exists() or not (other.root / rankings).is_file()):
        rankings = None
    if rankings is not None:  # compare with what the other run was made from
        config = replace(config, runs_folder=str(other.root.parent), run_name=other.root.name)
    with locked(run.root):
        plan, found = prepare(stage, config, run, force=False), manifest.read(theirs)
        if plan.done is not None or found is None or found.fingerprint != plan.fingerprint:
            return
        print(f"{stage.name}: taken from {theirs}, which had the same settings and inputs", flush=True)
        if rankings is not None:
            from labeling.web.people import People

            (run.root / rankings).parent.mkdir(exist_ok=True)
            People(other.root / rankings).copy_to(run.root / rankings)
        # The manifest, which marks a complete result, comes last.
        copy_folder(theirs, plan.partial, linked, left_out=manifest.NAME)
        linked(str(theirs / manifest.NAME), str(plan.partial / manifest.NAME))
        put_in_place(plan.partial, run.stage(stage.name), stage.temporary)


def linked(source: str, target: str) -> None:
    """Links weights, which are never changed in place, if possible; copies other files and makes them writable."""
    Path(target).unlink(missing_ok=True)
    if source.endswith(".safetensors"):
        with contextlib.suppress(OSError):  # another disk, or a file system without links
            os.link(source, target)
            return
    shutil.copy2(source, target)
    make_writable(target)


def put_in_place(partial: Path, final: Path, scratch: Sequence[str] = ()) -> None:
    """Renames a complete folder to its final name, then removes the older result and the folders in `scratch`."""
    old = final.with_name(f"{final.name}.old")
    discard(old)
    if final.exists() or final.is_symlink():
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    tidy(final, scratch)


def tidy(final: Path, scratch: Sequence[str] = ()) -> None:
    """Completes an interrupted `put_in_place`: restores the old result if there is no new one, removes it otherwise,
    and removes the folders in `scratch`.
    """
    old = final.with_name(f"{final.name}.old")
    if old.exists() and not final.exists():
        old.rename(final)
    discard(old)
    shutil.rmtree(discarded(final.with_name(f"{final.name}.partial")), ignore_errors=True)
    for name in scratch:
        shutil.rmtree(final / name, ignore_errors=True)
    for name in (FINGERPRINT, SESSION):
        (final / name).unlink(missing_ok=True)


def make_folder(root: Path) -> None:
    """Makes the run folder. Raises ValueError when it or one of its parents is a file or a link to nothing."""
    for folder in (*reversed(root.parents), root):
        if folder.is_symlink() and not folder.exists():
            place = os.readlink(folder)
            raise ValueError(f"{folder} is a link to {place}, which does not exist: mount or create it")
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"the run folder cannot be {root}: {folder} is a file; change runs_folder or run_name")
    root.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Holds the lock of the run folder, which the operating system releases when the process ends.

    Raises InUseError when another process holds it, and ValueError when the folder or one of its parents is a file.
    """
    make_folder(root)
    busy, held = f"the run folder {root} is in use by another process: wait for it", root / ".lock.held"
    died = f"; if it died on another machine or in another container, delete {held}" if held.exists() else ""
    with locked_file(root / ".lock", InUseError(f"{busy}, or choose another --run_name{died}")):
        yield


def now() -> str:
    """UTC time to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def main(
    work: Callable[..., None],
    program: str,
    description: str,
    arguments: Sequence[str] | None = None,
    options: Options = FORCE,
) -> None:
    """The command line of a stage: calls `work(config, force=..., ...)` with its options.

    Every error is reported in one sentence, with exit code 2 if the user can fix it and 1 for a bug. Its traceback is
    written to a file, in the run folder if possible.
    """
    config: RunConfig | None = None
    STOP.number = 0
    replace_missing_outputs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals without UTF-8; stderr does so by itself
    try:
        try:
            config, given = parse_config(program, description, arguments, options)
            with STOP.working():
                work(config, **given)
                if count() > 1:
                    from accelerate import PartialState

                    PartialState().destroy_process_group()
        finally:
            sys.stdout.flush()  # A closed pipe is detected here, not when Python exits.
    except Exception as error:
        if STOP.number:  # the consequence of an interrupt
            interrupted(None)
        leave(report(error, None if config is None else Path(config.runs_folder) / config.run_name))
    except KeyboardInterrupt as stop:
        interrupted(stop)
    if count() > 1 or STOP.is_command:
        # Python's shutdown adds nothing, and gloo threads that are still alive, or a signal, could abort it.
        leave(0, at_once=True)


def interrupted(stop: KeyboardInterrupt | None) -> NoReturn:
    """Prints the message in the first process, and ends this process.

    torchrun sends SIGTERM to the others when one process fails; the message then names that process.
    """
    sentence = str(stop or "") or STOP.sentence()
    if count() > 1 and STOP.number == signal.SIGTERM:
        failed = failures().first()
        failures().note(sentence)
        sentence = f"stopped, because {failed}" if failed else sentence
    if own_rank() == 0:
        say(sentence)
    leave(getattr(stop, "exit_code", STOP.code()), at_once=STOP.is_command)


def leave(code: int, at_once: bool = False) -> NoReturn:
    """Ends the process.

    Args:
        at_once: skips Python's shutdown, which may wait for worker processes and print tracebacks. With several
            processes it is always skipped: gloo's threads could abort it, and the other processes would wait.
    """
    if at_once or count() > 1:
        end_process(code)
    sys.exit(code)


def stage_main(stage: Stage, description: str) -> None:
    """`python -m stages.<stage>`."""

    def work(config: RunConfig, force: bool, dry_run: bool = False) -> None:
        if dry_run and stage.dry_run is not None:
            if own_rank() == 0:
                stage.dry_run(config)
        else:
            run_stage(stage, config, force)

    main(
        work, f"python -m stages.{stage.name}", description, options=FORCE if stage.dry_run is None else FORCE | DRY_RUN
    )
