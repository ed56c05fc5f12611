"""Infinite shuffled passes over prompts and pretraining examples. The state is one number, the position."""

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

from modeling.seeds import derive_seed
from ppo.config import PPOConfig

T = TypeVar("T")


class Sampler(Generic[T]):
    """Items in a shuffled order that depends only on the seed and the number of the pass, so `position` is the whole
    state.
    """

    def __init__(self, items: Sequence[T], seed: int, name: str, position: int = 0) -> None:
        if not items:
            raise ValueError(f"there are no {name} to sample from")
        self.items, self.seed, self.name, self.position = items, seed, name, position
        self._pass, self._order = -1, list[int]()

    def take(self, count: int) -> list[T]:
        """The next `count` items, continuing with the next pass at the end of this one."""
        taken = []
        for place in range(self.position, self.position + count):
            number, index = divmod(place, len(self.items))
            if number != self._pass:
                self._pass = number
                self._order = random.Random(derive_seed(self.seed, self.name, number)).sample(
                    range(len(self.items)), len(self.items)
                )
            taken.append(self.items[self._order[index]])
        self.position += count
        return taken


def own_minibatches(config: PPOConfig, rank: int, count: int) -> list[list[int]]:
    """The episode numbers of one of `count` processes, per minibatch. All responses to a prompt are on one process if
    the prompts are divisible by `count`, since they share the prompt's forward pass.
    """
    whole = config.minibatch_size // config.responses_per_prompt % count == 0
    run = config.responses_per_prompt if whole else 1
    return [
        [start + k for k in range(config.minibatch_size) if k // run % count == rank]
        for start in range(0, config.batch_size, config.minibatch_size)
    ]


def shuffled_minibatches(config: PPOConfig, seed: int, iteration: int, epoch: int) -> list[list[int]]:
    """Episode numbers of each minibatch in an inner epoch after the first. Responses to one prompt stay together.

    The order depends only on the seed, the iteration and the inner epoch, so it is the same in a resumed run and with
    any number of processes.
    """
    run, size = config.responses_per_prompt, config.minibatch_size
    prompts = range(config.batch_size // run)
    order = random.Random(derive_seed(seed, "inner epoch", iteration, epoch)).sample(prompts, len(prompts))
    numbers = [prompt * run + number for prompt in order for number in range(run)]
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
