"""Endless passes over prompts and pretraining examples, each pass in an order of its own; the place in the stream is
one number.
"""

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

from modeling.seeds import derive_seed
from ppo.config import PPOConfig

T = TypeVar("T")


class Sampler(Generic[T]):
    """Items in a shuffled order that depends on the seed and on the number of the pass alone, so `position` is all
    there is to save.
    """

    def __init__(self, items: Sequence[T], seed: int, name: str, position: int = 0) -> None:
        if not items:
            raise ValueError(f"there are no {name} to take from")
        self.items, self.seed, self.name, self.position = items, seed, name, position
        self._pass, self._order = -1, list[int]()

    def take(self, count: int) -> list[T]:
        """The next `count` items, going on into the next pass where this one ends."""
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
    """Episode numbers of each minibatch that one of `count` processes has. Whole prompts if they divide, since
    responses to one prompt share its pass.
    """
    whole = config.minibatch_size // config.responses_per_prompt % count == 0
    run = config.responses_per_prompt if whole else 1
    return [
        [start + k for k in range(config.minibatch_size) if k // run % count == rank]
        for start in range(0, config.batch_size, config.minibatch_size)
    ]


def shuffled_minibatches(config: PPOConfig, seed: int, iteration: int, epoch: int) -> list[list[int]]:
    """Episode numbers of each minibatch in an inner epoch after the first. Responses to one prompt stay together.

    The order depends only on the seed, the iteration and the inner epoch, so a resumed run and any number of processes
    see the same minibatches.
    """
    run, size = config.responses_per_prompt, config.minibatch_size
    prompts = range(config.batch_size // run)
    order = random.Random(derive_seed(seed, "inner epoch", iteration, epoch)).sample(prompts, len(prompts))
    numbers = [prompt * run + number for prompt in order for number in range(run)]
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
