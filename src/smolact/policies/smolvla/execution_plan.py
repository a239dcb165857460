"""An engine's buffers, masks and positions for one shape of observation, and the replan as one function of them.

Inputs are copied into buffers, `replan` reads and writes nothing else. It depends on no address of a caller's tensors and
never synchronizes with the host: on a GPU it is one CUDA graph, and on a CPU the same function runs directly.

Guidance (`guide`) is differentiated at each step, so there the expert's keys are concatenated with those of the prefix instead
of written into its buffers, and no graph is recorded; the prefix is run as usual.

Tokens that are never attended to are not computed: padding behind the state, missing cameras, and an instruction's padding
beyond the longest of the batch.
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
    """The sizes that determine all buffers."""

    batch: int
    cameras: tuple[Size | None, ...]
    """The size of each camera's fitted images; None for a missing camera."""
    text: int
    """Number of instruction tokens."""

    def __str__(self) -> str:
        sizes = ", ".join("none" if size is None else f"{size[0]}×{size[1]}" for size in self.cameras)
        return f"batch {self.batch}, cameras {sizes}, {self.text} text tokens"


class Settings(NamedTuple):
    """Settings that all plans of an engine share."""

    chunk: int
    state_width: int
    action_width: int
    num_steps: int
    solver: str
    compiled: bool
    graphs: bool


class Layout:
    """Token ranges of the prefix: each camera's tokens between special tokens, the instruction, the state."""

    def __init__(self, network: Network, shape: Shape) -> None:
        self.images: list[tuple[Size, slice]] = []
        """Size and token range of each camera that is present."""
        self.special_tokens: list[tuple[slice, list[int]]] = []
        offset = 0
        for size in shape.cameras:
            offset = self._add_special_tokens(offset, network.image_start)
            if size is not None:
                count = network.image_tokens(size)
                self.images.append((size, slice(offset, offset + count)))
                offset += count
            offset = self._add_special_tokens(offset, network.image_end)
        self.text = slice(offset, offset + shape.text)
        self.length = offset + shape.text + 1

    def _add_special_tokens(self, offset: int, ids: list[int]) -> int:
        self.special_tokens.append((slice(offset, offset + len(ids)), ids))
        return offset + len(ids)


class ExecutionPlan:
    """Buffers of a shape, and the functions that run on them: `replan`, or `observe` and later `act`."""

    def __init__(self, network: Network, shape: Shape, settings: Settings) -> None:
        self.network, self.shape, self.settings = network, shape, settings
        self.layout = layout = Layout(network, shape)
        batch, length, chunk = shape.batch, layout.length, settings.chunk
        options = {"dtype": network.dtype, "device": network.device}

        sizes = [size for size, _ in layout.images]
        self.pixels = {
            size: torch.zeros(sizes.count(size) * batch, 3, *size, **options) for size in dict.fromkeys(sizes)
        }
        self._patch_positions = {size: network.patch_positions(size) for size in self.pixels}
        self.state = torch.zeros(batch, settings.state_width, **options)
        self.noise = torch.zeros(batch, chunk, settings.action_width, device=network.device)
        self.actions = torch.zeros_like(self.noise)

        self._template = torch.zeros(batch, length, network.width, **options)
        for span, ids in layout.special_tokens:
            self._template[:, span] = network.embed_unscaled(torch.tensor(ids, dtype=torch.long))
        self._hidden = torch.zeros_like(self._template)

        def cache(tokens: int) -> tuple[Tensor, Tensor]:
            empty = torch.zeros(batch, network.key_heads, tokens, network.head_width, **options)
            return empty, torch.zeros_like(empty)

        # A self-attention layer of the expert writes its keys and values behind those of its VLM layer.
        cross = dict(zip(network.read_layers, network.cross, strict=True))
        self._cache = [
            cache(length if cross.get(index, True) else length + chunk) for index in range(len(network.text))
        ]
        self._cross_cache = {index: cache(length) for index, crosses in cross.items() if crosses}

        # In cross-attention layers the expert's positions count from 0.
        self._cross_rotary = self._rotary_tables(torch.arange(chunk)[None])
        self._rotary: dict[str, Rotary] = {}
        self._biases: dict[str, Tensor | None] = {}
        self._tokens: Tensor | None = None
        self._valid: Tensor | None = None

        self._embed_images: Callable[[Tensor, Tensor], Tensor] = network.embed_images
        self._prefill = self._prefill_layers
        self._velocity = self._expert_velocity
        if settings.compiled:
            self._embed_images = torch.compile(self._embed_images, dynamic=False)
            self._prefill = torch.compile(self._prefill, dynamic=False)
            self._velocity = torch.compile(self._velocity, dynamic=False)
        self._graphs: dict[str, Graph] = {}

    def load_prompt(self, tokens: Tensor, valid: Tensor) -> None:
        """Load the instruction and the prefix's validity mask; inputs that have not changed are skipped.

        Args:
            tokens: (B, L), on the CPU.
            valid: (B, P), on the CPU; false where a token is padding or of a camera without an image.
        """
        if self._tokens is None or not torch.equal(tokens, self._tokens):
            self._template[:, self.layout.text] = self.network.embed_text(tokens)
            self._tokens = tokens.clone()
        if self._valid is None or not torch.equal(valid, self._valid):
            self._set_positions_and_masks(valid)
            self._valid = valid.clone()

    def _set_positions_and_masks(self, valid: Tensor) -> None:
        batch, length, chunk = len(valid), self.layout.length, self.settings.chunk
        mask = block_mask(valid, torch.arange(length) == length - 1)
        prefix_mask = valid[:, None].expand(-1, chunk, -1)
        causal = torch.ones(chunk, chunk, dtype=torch.bool).tril().expand(batch, -1, -1)
        masks = {
            "all": mask,
            "context": mask[:, :-1, :-1],
            "state": mask[:, -1:],
            "cross": prefix_mask,
            "self": torch.cat([prefix_mask, causal], dim=2),
        }
        after = valid.sum(1, keepdim=True) + torch.arange(chunk)
        for name, positions in (("prefix", positions_of(valid)), ("suffix", after)):
            tables = self._rotary_tables(positions)
            for old, new in zip(self._rotary.setdefault(name, tables), tables, strict=True):
                old.copy_(new)
        for name, part in masks.items():
            # A graph reads the addresses of its recording, so there a mask stays even if it hides nothing.
            if self.settings.graphs or not part.all():
                bias = folded_bias(part, self.network.groups, self.network.dtype, self.network.device)
                old_bias = self._biases.get(name)
                self._biases[name] = bias if old_bias is None else old_bias.copy_(bias)
            else:
                self._biases[name] = None

    def _rotary_tables(self, positions: Tensor) -> Rotary:
        cosines, sines = rotary_tables(positions, self.network.head_width, ROTARY_BASE)
        return cosines.to(self.network.device), sines.to(self.network.device)

    @property
    def captured(self) -> bool:
        """Whether CUDA graphs have been recorded."""
        return bool(self._graphs)

    def capture(self) -> None:
        """Record `replan`, `observe`, `act` and `read` as CUDA graphs, which share the memory of intermediate tensors."""
        pool = torch.cuda.graph_pool_handle()
        for work in (self.replan, self.observe, self.act, self.read):
            self._graphs[work.__name__] = Graph(work, self.network.device, pool)

    def run(self, name: str) -> None:
        """Run `replan`, `observe`, `act` or `read`, as a graph if it was captured."""
        work: Callable[[], None] = self._graphs.get(name) or getattr(self, name)
        work()

    def replan(self) -> None:
        """Compute actions from pixels, state and noise."""
        self.read()
        self._denoise()

    def read(self) -> None:
        """Run pixels and state through the VLM, and cache the keys and values that the expert reads."""
        self._embed_context()
        self._embed_state()
        self._prefill_rows(0, self.layout.length, "all")

    def guide(self, guidance: Guidance) -> None:
        """Compute actions from noise that continue the leftover ones; call `read` first."""

        def velocity(x: Tensor, time: float) -> Tensor:
            return self._expert_velocity(x, self.network.time_bias(time), in_place=False)

        field = guided(velocity, guidance)
        self.actions.copy_(integrate(field, self.noise, self.settings.num_steps, self.settings.solver))

    def observe(self) -> None:
        """Run images and instruction, which do not attend to the state."""
        self._embed_context()
        self._prefill_rows(0, self.layout.length - 1, "context")

    def act(self) -> None:
        """Run the rest of `replan` after `observe`."""
        self._embed_state()
        self._prefill_rows(self.layout.length - 1, self.layout.length, "state")
        self._denoise()

    def _embed_context(self) -> None:
        self._hidden.copy_(self._template)
        for size, pixels in self.pixels.items():
            tokens = self._embed_images(pixels, self._patch_positions[size])
            spans = [span for image_size, span in self.layout.images if image_size == size]
            for span, camera in zip(spans, torch.split(tokens, self.shape.batch), strict=True):
                self._hidden[:, span] = camera

    def _embed_state(self) -> None:
        self._hidden[:, -1] = self.network.state(self.state)

    def _prefill_rows(self, first: int, last: int, bias: str) -> None:
        """Run rows of the prefix through the VLM, and cache the keys and values that the expert reads."""
        cosines, sines = self._rotary["prefix"]
        rotary = cosines[:, :, first:last], sines[:, :, first:last]
        self._prefill(self._hidden[:, first:last], rotary, self._biases[bias], first, last)

    def _prefill_layers(
        self, hidden: Tensor, rotary: Rotary, bias: Tensor | None, first: int, last: int
    ) -> None:
        network, rows = self.network, slice(first, last)
        experts = dict(zip(network.read_layers, network.expert, strict=True))
        for index, block in enumerate(network.text):
            keys, values = self._cache[index]
            queries = network.project_into(block, hidden, rotary, keys[:, :, rows], values[:, :, rows])
            if index in self._cross_cache:
                own_keys, own_values = self._cross_cache[index]
                own_keys[:, :, rows], own_values[:, :, rows] = network.project_cross(
                    experts[index], keys[:, :, rows], values[:, :, rows]
                )
            if block.post_attention is not None:
                attended = attend_folded(queries, keys[:, :, :last], values[:, :, :last], bias)
                hidden = network.output_and_mlp(block, hidden, attended)

    def _denoise(self) -> None:
        def velocity(x: Tensor, time: float) -> Tensor:
            return self._velocity(x, self.network.time_bias(time))

        self.actions.copy_(integrate(velocity, self.noise, self.settings.num_steps, self.settings.solver))

    def _expert_velocity(self, noisy: Tensor, time_bias: Tensor, in_place: bool = True) -> Tensor:
        network, suffix = self.network, slice(self.layout.length, None)
        hidden = network.embed_actions(noisy, time_bias)
        for index, crosses, block in zip(network.read_layers, network.cross, network.expert, strict=True):
            rotary = self._cross_rotary if crosses else self._rotary["suffix"]
            keys, values = self._cross_cache[index] if crosses else self._cache[index]
            if in_place:
                own_cache = keys[:, :, suffix], values[:, :, suffix]
                queries = network.project_into(block, hidden, rotary, *own_cache)
            else:
                queries, own_keys, own_values = network.project(block, hidden, rotary)
                if not crosses:
                    keys = torch.cat([keys[:, :, : self.layout.length], own_keys], dim=2)
                    values = torch.cat([values[:, :, : self.layout.length], own_values], dim=2)
            bias = self._biases["cross" if crosses else "self"]
            hidden = network.output_and_mlp(block, hidden, attend_folded(queries, keys, values, bias))
        return network.velocity(hidden)
