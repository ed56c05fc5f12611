"""Endless passes over prompts and pretraining examples, each pass in an order of its own; the place in the stream is one number."""

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

from modeling.seeds import derive_seed

T = TypeVar("T")


class Stream(Generic[T]):
    """Items in a shuffled order that depends on the seed and on the number of the pass alone, so `position` is all there is to save."""

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
                self._order = random.Random(derive_seed(self.seed, self.name, number)).sample(range(len(self.items)), len(self.items))
            taken.append(self.items[self._order[index]])
        self.position += count
        return taken
