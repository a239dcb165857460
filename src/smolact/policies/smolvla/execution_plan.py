"""What an engine keeps for one shape of observation: buffers, masks, positions; and the replan as one function of them.

The inputs are copied into buffers, `replan` reads and writes nothing else, and its result is in a buffer. Nothing depends on
where a caller's tensors lie, and the host looks at nothing in between: on a GPU the whole is one CUDA graph, and on a CPU the
same function runs as it is.

What is guided (`guide`) is differentiated at each step, so there the expert's keys are put beside those of the prefix and not
written into its buffers, and no graph is recorded of it; the prefix is read as ever.

What nobody sees is not computed: padding behind the state, cameras that are not there, an instruction's padding beyond the
longest of the batch.
"""

# B batch, P prefix tokens, L text tokens, C chunk, A action width, K key/value heads, H head width.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from smolact.backbones.layers import rotary_tables
from smolact.policies.common.attention import attend_folded, block_mask, folded_bias, positions_of
from smolact.policies.common.flow_matching import integrate
from smolact.policies.common.graphs import Graph
from smolact.policies.common.guidance import Guidance, guided
from smolact.policies.smolvla.engine_network import Network
from smolact.policies.smolvla.smolvlm_with_expert import ROTARY_BASE, Rotary

Size = tuple[int, int]
"""Height and width of an image."""


class Shape(NamedTuple):
    """What decides the sizes of all buffers."""

    batch: int
    cameras: tuple[Size | None, ...]
    """Of each camera's fitted images; None for one that is not there."""
    text: int
    """Tokens of the instruction."""

    def __str__(self) -> str:
        sizes = ", ".join("none" if size is None else f"{size[0]}×{size[1]}" for size in self.cameras)
        return f"batch {self.batch}, cameras {sizes}, {self.text} text tokens"


class Settings(NamedTuple):
    """What all plans of an engine share."""

    chunk: int
    state_width: int
    action_width: int
    num_steps: int
    solver: str
    compiled: bool
    graphs: bool


class Layout:
    """Where everything is in the prefix: each camera's tokens with marks around them, the instruction, the state."""

    def __init__(self, network: Network, shape: Shape) -> None:
        self.images: list[tuple[Size, slice]] = []
        """Of each camera that is there."""
        self.marks: list[tuple[slice, list[int]]] = []
        at = 0
        for size in shape.cameras:
            at = self._mark(at, network.image_start)
            if size is not None:
                count = network.image_tokens(size)
                self.images.append((size, slice(at, at + count)))
                at += count
            at = self._mark(at, network.image_end)
        self.text = slice(at, at + shape.text)
        self.length = at + shape.text + 1

    def _mark(self, at: int, ids: list[int]) -> int:
        self.marks.append((slice(at, at + len(ids)), ids))
        return at + len(ids)


class ExecutionPlan:
    """Buffers of a shape, and what runs on them: `replan`, or `observe` and later `act`."""

    def __init__(self, network: Network, shape: Shape, settings: Settings) -> None:
        self.network, self.shape, self.settings = network, shape, settings
        self.layout = layout = Layout(network, shape)
        batch, length, chunk = shape.batch, layout.length, settings.chunk
        kind = {"dtype": network.dtype, "device": network.device}

        sizes = [size for size, _ in layout.images]
        self.pixels = {
            size: torch.zeros(sizes.count(size) * batch, 3, *size, **kind) for size in dict.fromkeys(sizes)
        }
        self._patch_positions = {size: network.patch_positions(size) for size in self.pixels}
        self.state = torch.zeros(batch, settings.state_width, **kind)
        self.noise = torch.zeros(batch, chunk, settings.action_width, device=network.device)
        self.actions = torch.zeros_like(self.noise)

        self._template = torch.zeros(batch, length, network.width, **kind)
        for place, ids in layout.marks:
            self._template[:, place] = network.embed_marks(torch.tensor(ids, dtype=torch.long))
        self._hidden = torch.zeros_like(self._template)

        def cache(tokens: int) -> tuple[Tensor, Tensor]:
            empty = torch.zeros(batch, network.key_heads, tokens, network.head_width, **kind)
            return empty, torch.zeros_like(empty)

        # An expert's self-attention layer writes its own keys and values behind those of the VLM's layer that it reads.
        reads = dict(zip(network.read_layers, network.cross, strict=True))
        self._cache = [
            cache(length if reads.get(index, True) else length + chunk) for index in range(len(network.text))
        ]
        self._crossed = {index: cache(length) for index, crosses in reads.items() if crosses}

        # Where the expert looks at the prefix alone, its positions count from 0.
        self._cross_rotary = self._tables(torch.arange(chunk)[None])
        self._rotary: dict[str, Rotary] = {}
        self._biases: dict[str, Tensor | None] = {}
        self._tokens: Tensor | None = None
        self._valid: Tensor | None = None

        self._see: Callable[[Tensor, Tensor], Tensor] = network.embed_images
        self._read_part = self._read_layers
        self._velocity = self._find_velocity
        if settings.compiled:
            self._see = torch.compile(self._see, dynamic=False)
            self._read_part = torch.compile(self._read_part, dynamic=False)
            self._velocity = torch.compile(self._velocity, dynamic=False)
        self._graphs: dict[str, Graph] = {}

    # What comes in.

    def load_prompt(self, tokens: Tensor, valid: Tensor) -> None:
        """Take the instruction, and what of the prefix is there; nothing is done while both stay the same.

        Args:
            tokens: (B, L), on the CPU.
            valid: (B, P), on the CPU; false where a token is padding or of a camera that has no picture.
        """
        if self._tokens is None or not torch.equal(tokens, self._tokens):
            self._template[:, self.layout.text] = self.network.embed_text(tokens)
            self._tokens = tokens.clone()
        if self._valid is None or not torch.equal(valid, self._valid):
            self._place(valid)
            self._valid = valid.clone()

    def _place(self, valid: Tensor) -> None:
        """Positions and masks, for all layers and steps."""
        batch, length, chunk = len(valid), self.layout.length, self.settings.chunk
        mask = block_mask(valid, torch.arange(length) == length - 1)
        seen = valid[:, None].expand(-1, chunk, -1)
        causal = torch.ones(chunk, chunk, dtype=torch.bool).tril().expand(batch, -1, -1)
        masks = {
            "all": mask,
            "context": mask[:, :-1, :-1],
            "state": mask[:, -1:],
            "cross": seen,
            "self": torch.cat([seen, causal], dim=2),
        }
        after = valid.sum(1, keepdim=True) + torch.arange(chunk)
        for name, positions in (("prefix", positions_of(valid)), ("suffix", after)):
            tables = self._tables(positions)
            for old, new in zip(self._rotary.setdefault(name, tables), tables, strict=True):
                old.copy_(new)
        for name, part in masks.items():
            # A graph reads where it read when it was recorded, so there a mask is a mask even if it hides nothing.
            if self.settings.graphs or not part.all():
                bias = folded_bias(part, self.network.groups, self.network.dtype, self.network.device)
                old_bias = self._biases.get(name)
                self._biases[name] = bias if old_bias is None else old_bias.copy_(bias)
            else:
                self._biases[name] = None

    def _tables(self, positions: Tensor) -> Rotary:
        cosines, sines = rotary_tables(positions, self.network.head_width, ROTARY_BASE)
        return cosines.to(self.network.device), sines.to(self.network.device)

    # What is run.

    @property
    def captured(self) -> bool:
        """Whether there are CUDA graphs."""
        return bool(self._graphs)

    def capture(self) -> None:
        """Record `replan`, `observe`, `act` and `read` as CUDA graphs, which share the memory of what is in between."""
        pool = torch.cuda.graph_pool_handle()
        for work in (self.replan, self.observe, self.act, self.read):
            self._graphs[work.__name__] = Graph(work, self.network.device, pool)

    def run(self, name: str) -> None:
        """Run `replan`, `observe`, `act` or `read`, as a graph if it was captured."""
        work: Callable[[], None] = self._graphs.get(name) or getattr(self, name)
        work()

    def replan(self) -> None:
        """From pixels, state and noise to actions."""
        self.read()
        self._denoise()

    def read(self) -> None:
        """From pixels and state to all that the expert reads of them."""
        self._embed_context()
        self._embed_state()
        self._read_rows(0, self.layout.length, "all")

    def guide(self, guidance: Guidance) -> None:
        """From noise to actions that go on from others; after `read`."""

        def velocity(x: Tensor, time: float) -> Tensor:
            return self._find_velocity(x, self.network.time_bias(time), in_place=False)

        field = guided(velocity, guidance)
        self.actions.copy_(integrate(field, self.noise, self.settings.num_steps, self.settings.solver))

    def observe(self) -> None:
        """What can be done before the state is there: images and instruction do not see it."""
        self._embed_context()
        self._read_rows(0, self.layout.length - 1, "context")

    def act(self) -> None:
        """The rest of `replan`."""
        self._embed_state()
        self._read_rows(self.layout.length - 1, self.layout.length, "state")
        self._denoise()

    def _embed_context(self) -> None:
        self._hidden.copy_(self._template)
        for size, pixels in self.pixels.items():
            tokens = self._see(pixels, self._patch_positions[size])
            places = [place for other, place in self.layout.images if other == size]
            for place, camera in zip(places, torch.split(tokens, self.shape.batch), strict=True):
                self._hidden[:, place] = camera

    def _embed_state(self) -> None:
        self._hidden[:, -1] = self.network.state(self.state)

    def _read_rows(self, first: int, last: int, bias: str) -> None:
        """Run rows of the prefix through the VLM, and keep what the expert will read of them."""
        cosines, sines = self._rotary["prefix"]
        rotary = cosines[:, :, first:last], sines[:, :, first:last]
        self._read_part(self._hidden[:, first:last], rotary, self._biases[bias], first, last)

    def _read_layers(
        self, hidden: Tensor, rotary: Rotary, bias: Tensor | None, first: int, last: int
    ) -> None:
        network, rows = self.network, slice(first, last)
        experts = dict(zip(network.read_layers, network.expert, strict=True))
        for index, block in enumerate(network.text):
            keys, values = self._cache[index]
            queries = network.project_into(block, hidden, rotary, keys[:, :, rows], values[:, :, rows])
            if index in self._crossed:
                own_keys, own_values = self._crossed[index]
                own_keys[:, :, rows], own_values[:, :, rows] = network.read(
                    experts[index], keys[:, :, rows], values[:, :, rows]
                )
            if block.post_attention is not None:
                attended = attend_folded(queries, keys[:, :, :last], values[:, :, :last], bias)
                hidden = network.output_and_mlp(block, hidden, attended)

    def _denoise(self) -> None:
        def velocity(x: Tensor, time: float) -> Tensor:
            return self._velocity(x, self.network.time_bias(time))

        self.actions.copy_(integrate(velocity, self.noise, self.settings.num_steps, self.settings.solver))

    def _find_velocity(self, noisy: Tensor, time_bias: Tensor, in_place: bool = True) -> Tensor:
        network, suffix = self.network, slice(self.layout.length, None)
        hidden = network.embed_actions(noisy, time_bias)
        for index, crosses, block in zip(network.read_layers, network.cross, network.expert, strict=True):
            rotary = self._cross_rotary if crosses else self._rotary["suffix"]
            keys, values = self._crossed[index] if crosses else self._cache[index]
            if in_place:
                places = keys[:, :, suffix], values[:, :, suffix]
                queries = network.project_into(block, hidden, rotary, *places)
            else:
                queries, own_keys, own_values = network.project(block, hidden, rotary)
                if not crosses:
                    keys = torch.cat([keys[:, :, : self.layout.length], own_keys], dim=2)
                    values = torch.cat([values[:, :, : self.layout.length], own_values], dim=2)
            bias = self._biases["cross" if crosses else "self"]
            hidden = network.output_and_mlp(block, hidden, attend_folded(queries, keys, values, bias))
        return network.velocity(hidden)
