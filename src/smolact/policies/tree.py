"""A model as a tree of its parts, with their sizes and trainable shares. Layers of equal size form one branch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from smolact.policies.base import PreTrainedPolicy
from smolact.policies.workload import PartSize

REST = "projections"
"""The part of what belongs to none of a policy's `parts`."""

EMPTY = PartSize(0, 0)


@dataclass(frozen=True)
class Branch:
    """A part of a model, and the parts of it."""

    name: str
    size: PartSize
    branches: tuple[Branch, ...] = ()


def tree_of(policy: PreTrainedPolicy, name: str = "all") -> Branch:
    """Return the policy's parts in the order of its `parts`, without empty ones; by default its own modules are its parts."""
    leaves: dict[str, dict[tuple[str, ...], PartSize]] = {part: {} for part in (*policy.parts, REST)}
    for path, parameter in policy.named_parameters():
        words = path.split(".")
        part, inner = (
            _locate(words, policy.parts) if policy.parts else (words[0], tuple(words[1:2]) or (words[0],))
        )
        count = parameter.numel()
        size = PartSize(count, count if parameter.requires_grad else 0)
        branch = leaves.setdefault(part, {})
        branch[inner] = branch.get(inner, EMPTY) + size
    parts = (Branch(part, _sum(inner.values()), tuple(_grouped(inner))) for part, inner in leaves.items())
    present = tuple(branch for branch in parts if branch.size.parameters)
    return Branch(name, _sum(branch.size for branch in present), present)


def rows_of(tree: Branch, prefix: str = "", indent: str = "") -> Iterator[tuple[str, Branch]]:
    """Yield each branch after its name, which is indented by tree lines."""
    yield prefix + tree.name, tree
    for number, branch in enumerate(tree.branches):
        last = number == len(tree.branches) - 1
        yield from rows_of(branch, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "))


def _locate(words: list[str], parts: Mapping[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    """Return the part of a parameter, and its location there: ("layers", "3"), or the name of a module."""
    for part, module_names in parts.items():
        index = next((position for position, word in enumerate(words) if word in module_names), None)
        if index is not None:
            inner = words[index + 1 :]
            if "layers" in inner:
                return part, ("layers", inner[inner.index("layers") + 1])
            return part, (inner[0] if len(inner) > 1 else words[index],)
    return REST, (words[-2] if len(words) > 1 else words[-1],)


def _grouped(leaves: Mapping[tuple[str, ...], PartSize]) -> Iterator[Branch]:
    """Yield one branch per module, and one for all layers of equal size."""
    layers: dict[PartSize, list[int]] = {}
    for location, size in leaves.items():
        if len(location) == 2:
            layers.setdefault(size, []).append(int(location[1]))
    has_layers = False
    for location, size in leaves.items():
        if len(location) == 1:
            yield Branch(location[0], size)
        elif not has_layers:
            has_layers = True
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
    return sum(sizes, EMPTY)
