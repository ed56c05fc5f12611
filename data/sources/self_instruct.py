"""Self-Instruct (Wang et al. 2022): tasks that people wrote, each an instruction with instances of an input and an
output.

The files are in github.com/yizhongw/self-instruct: `data/seed_tasks.jsonl` and
`human_eval/user_oriented_instructions.jsonl`. The second names the application that a task was written for
(`motivation_app`): these are InstructGPT's user-based prompts, and the application is the user.

A task with one instance is a prompt with its answer. One with several is a few-shot prompt where every instance has an
input, as the paper's few-shot prompts do; else each instance stands alone. Instances without an output are left out.
"""

from collections.abc import Iterable
from typing import Any

from data.sources.adapter import Adapter, Row, identifier, need, single
from data.sources.common import with_input, without_answers


def _task(row: Row) -> dict[str, Any]:
    """The fields that all of a task's prompts share."""
    app, is_classification = row.get("motivation_app"), row.get("is_classification")
    shared = {"kind": "plain" if app is None else "user_based", "user_id": identifier(row, "id")}
    if app is not None:
        shared["user_id"] = need(row, "motivation_app", str)
    return shared | ({"use_case": "classification"} if is_classification is True else {})


def _instances(row: Row) -> list[tuple[str, str]]:
    """(input, output) of each instance with an output."""
    instances = need(row, "instances", list)
    if not instances or not all(isinstance(instance, dict) for instance in instances):
        raise ValueError("'instances' must be a list of objects with 'input' and 'output'")
    pairs = [(need(instance, "input", str).strip(), need(instance, "output", str).strip()) for instance in instances]
    return [(given, output) for given, output in pairs if output]


def _separate(row: Row) -> Iterable[dict[str, Any]]:
    """A demonstration for each instance."""
    instances = _instances(row)
    for number, (given, output) in enumerate(instances, start=1):
        task_id = identifier(row, "id")
        record = {"prompt": with_input(need(row, "instruction", str), given), "completion": output}
        yield _task(row) | record | {"prompt_id": task_id if len(instances) == 1 else f"{task_id}.{number}"}


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    instances = _instances(row)
    if len(instances) > 1 and all(given for given, _ in instances):
        examples = [{"prompt": given, "completion": output} for given, output in instances]
        task = {
            "prompt": need(row, "instruction", str),
            "prompt_id": identifier(row, "id"),
            "kind": "few_shot",
            "examples": examples,
        }
        yield _task(row) | task
    else:
        yield from _separate(row)


ADAPTER = Adapter(
    name="self_instruct",
    keys=(("instruction", "instances"),),
    about="Self-Instruct's tasks by people, with the applications they are for (Apache-2.0)",
    source="labeler",
    convert={"demonstrations": single(_demonstrations), "prompts": single(without_answers(_separate))},
)
