"""A model as a tree: its parts, what each is made of, and how much of it trains. Layers of one size are one branch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from smolact.policies.workload import PartSize

PARTS = {
    "vision tower": ("vision_model",),
    "connector": ("connector",),
    "text model": ("text_model", "lm_head"),
    "action expert": ("lm_expert",),
}
"""Names of a policy's parts, by what their parameters' names contain; all others are projections."""
REST = "projections"

NOTHING = PartSize(0, 0)


@dataclass(frozen=True)
class Branch:
    """A part of a model, and the parts that it has."""

    name: str
    size: PartSize
    branches: tuple[Branch, ...] = ()


def tree_of(model: nn.Module, name: str = "all") -> Branch:
    """The model's parts in the order of `PARTS`, those without parameters left out."""
    leaves: dict[str, dict[tuple[str, ...], PartSize]] = {part: {} for part in (*PARTS, REST)}
    for path, parameter in model.named_parameters():
        part, inner = _place(path.split("."))
        count = parameter.numel()
        size = PartSize(count, count if parameter.requires_grad else 0)
        leaves[part][inner] = leaves[part].get(inner, NOTHING) + size
    parts = (Branch(part, _sum(inner.values()), tuple(_grouped(inner))) for part, inner in leaves.items())
    whole = tuple(branch for branch in parts if branch.size.parameters)
    return Branch(name, _sum(branch.size for branch in whole), whole)


def rows_of(tree: Branch, stem: str = "", twig: str = "") -> Iterator[tuple[str, Branch]]:
    """Each branch behind its name with the lines that show where it hangs."""
    yield stem + tree.name, tree
    for number, branch in enumerate(tree.branches):
        last = number == len(tree.branches) - 1
        yield from rows_of(branch, twig + ("└─ " if last else "├─ "), twig + ("   " if last else "│  "))


def _place(words: list[str]) -> tuple[str, tuple[str, ...]]:
    """The part that a parameter is of, and where in it: ("layers", "3"), or the name of a module."""
    for part, marks in PARTS.items():
        found = next((place for place, word in enumerate(words) if word in marks), None)
        if found is not None:
            inner = words[found + 1 :]
            if "layers" in inner:
                return part, ("layers", inner[inner.index("layers") + 1])
            return part, (inner[0] if len(inner) > 1 else words[found],)
    return REST, (words[-2] if len(words) > 1 else words[-1],)


def _grouped(leaves: Mapping[tuple[str, ...], PartSize]) -> Iterator[Branch]:
    """One branch a module, and one for all layers of a size."""
    layers: dict[PartSize, list[int]] = {}
    for place, size in leaves.items():
        if len(place) == 2:
            layers.setdefault(size, []).append(int(place[1]))
    told = False
    for place, size in leaves.items():
        if len(place) == 1:
            yield Branch(place[0], size)
        elif not told:
            told = True
            for each, numbers in layers.items():
                which = f" ({_listed(sorted(numbers))})" if len(layers) > 1 else ""
                count = PartSize(each.parameters * len(numbers), each.trained * len(numbers))
                yield Branch(f"{len(numbers)} layer{'s'[: len(numbers) != 1]}{which}", count)


def _listed(numbers: list[int]) -> str:
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1:
        return f"{numbers[0]}, {numbers[1]} … {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _sum(sizes: Iterable[PartSize]) -> PartSize:
    return sum(sizes, NOTHING)
