"""An engine's buffers, masks and positions for one shape of observation, and the replan as one function of them.

Inputs are copied into buffers, `replan` reads and writes nothing else. It depends on no address of a caller's
tensors and never synchronizes with the host: on a GPU it is one CUDA graph, and on a CPU the same function
runs directly.

Guidance (`guide`) is differentiated at each step, so there the expert's keys are concatenated with those of
the prefix instead of written into its buffers, and no graph is recorded; the prefix is run as usual.

Tokens that are never attended to are not computed: padding behind the state, missing cameras, and an
instruction's padding beyond the longest of the batch.
"""

# B batch, P prefix tokens, L text tokens, C chunk, A action width, K key/value heads, H head width.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smolact.backbones.layers import rotary_tables
from smolact.policies.common.attention import block_mask, positions_of
from smolact.policies.common.flow_matching import integrate
from smolact.policies.common.guidance import Guidance, guided
from smolact.policies.inference.decoder import Rotary, folded_bias
from smolact.policies.inference.graphs import Graphs
from smolact.policies.inference.vision import Size, embed_images, image_tokens, position_embeddings
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.engine_network import Network, embed_tokens, prefill, time_bias, velocity
from smolact.policies.smolvla.smolvlm_with_expert import ROTARY_BASE


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


class Layout:
    """Token ranges of the prefix: each camera's tokens between special tokens, the instruction, the state."""

    def __init__(self, network: Network, shape: Shape) -> None:
        self.images: list[tuple[Size, slice]] = []
        """Size and token range of each camera that is present."""
        self.special_tokens: list[tuple[slice, list[int]]] = []
        self.length = 0
        for size in shape.cameras:
            self.special_tokens.append((self._add(len(network.image_start)), network.image_start))
            if size is not None:
                self.images.append((size, self._add(image_tokens(network.vision, size))))
            self.special_tokens.append((self._add(len(network.image_end)), network.image_end))
        self.text = self._add(shape.text)
        self.state = self._add(1)

    def _add(self, tokens: int) -> slice:
        self.length += tokens
        return slice(self.length - tokens, self.length)


class ExecutionPlan:
    """Buffers of a shape, and the functions that run on them: `replan`, or `observe` and later `act`.

    Args:
        steps: the number of denoising steps, and their solver.
        compiled: use `torch.compile`.
        graphs: whether CUDA graphs are recorded.
    """

    def __init__(
        self,
        network: Network,
        config: SmolVLAConfig,
        shape: Shape,
        *,
        steps: tuple[int, str],
        compiled: bool,
        graphs: bool,
    ) -> None:
        self.network, self.shape, self._steps, self._keeps_masks = network, shape, steps, graphs
        self.layout = layout = Layout(network, shape)
        batch, length, chunk = shape.batch, layout.length, config.chunk_size
        self._chunk = chunk
        options: dict[str, Any] = {"dtype": network.dtype, "device": network.device}

        sizes = [size for size, _ in layout.images]
        self.pixels = {
            size: torch.zeros(sizes.count(size) * batch, 3, *size, **options) for size in dict.fromkeys(sizes)
        }
        self._patch_positions = {size: position_embeddings(network.vision, size) for size in self.pixels}
        self.state = torch.zeros(batch, config.max_state_dim, **options)
        self.noise = torch.zeros(batch, chunk, config.max_action_dim, device=network.device)
        self.actions = torch.zeros_like(self.noise)

        self._template = torch.zeros(batch, length, network.embeddings.shape[1], **options)
        for span, ids in layout.special_tokens:
            self._template[:, span] = embed_tokens(network, torch.tensor(ids, dtype=torch.long))
        self._hidden = torch.zeros_like(self._template)

        def cache(tokens: int) -> Tensor:
            return torch.zeros(2, batch, network.key_heads, tokens, network.head_width, **options)

        # A self-attention layer of the expert writes its keys and values behind those of its VLM layer.
        shared = {layer.reads for layer in network.expert if layer.cross is None}
        self._caches = [cache(length + chunk * (index in shared)) for index in range(len(network.text))]
        self._cross_caches = {layer.reads: cache(length) for layer in network.expert if layer.cross}
        self._expert_caches = [
            {**dict(enumerate(self._caches)), **self._cross_caches}[e.reads] for e in network.expert
        ]

        # In cross-attention layers the expert's positions count from 0.
        self._cross_rotary = self._rotary_tables(torch.arange(chunk)[None])
        self._rotary: dict[str, Rotary] = {}
        self._biases: dict[str, Tensor | None] = {}
        self._time_biases: dict[float, Tensor] = {}
        self._tokens: Tensor | None = None
        self._valid: Tensor | None = None

        self._embed_images, self._prefill, self._velocity = embed_images, prefill, velocity
        if compiled:
            self._embed_images = torch.compile(embed_images, dynamic=False)
            self._prefill = torch.compile(prefill, dynamic=False)
            self._velocity = torch.compile(velocity, dynamic=False)
        self._graphs = Graphs(network.device)

    def load_prompt(self, tokens: Tensor, valid: Tensor) -> None:
        """Load the instruction and the prefix's validity mask; inputs that have not changed are skipped.

        Args:
            tokens: (B, L), on the CPU.
            valid: (B, P), on the CPU; false where a token is padding or of a camera without an image.
        """
        if self._tokens is None or not torch.equal(tokens, self._tokens):
            scale = math.sqrt(self.network.embeddings.shape[1])
            self._template[:, self.layout.text] = embed_tokens(self.network, tokens) * scale
            self._tokens = tokens.clone()
        if self._valid is None or not torch.equal(valid, self._valid):
            self._set_positions_and_masks(valid)
            self._valid = valid.clone()

    def _set_positions_and_masks(self, valid: Tensor) -> None:
        network, (batch, length), chunk = self.network, valid.shape, self._chunk
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
            if self._keeps_masks or not part.all():
                bias = folded_bias(part, network.heads // network.key_heads, network.dtype, network.device)
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
        return "replan" in self._graphs

    def capture(self) -> None:
        """Record `replan`, `observe`, `act` and `read` as CUDA graphs."""
        for work in (self.replan, self.observe, self.act, self.read):
            self._graphs.record(work.__name__, work)

    def run(self, name: str) -> None:
        """Run `replan`, `observe`, `act` or `read`, as a graph if it was captured."""
        self._graphs.run(name, getattr(self, name))

    def replan(self) -> None:
        """Compute actions from pixels, state and noise."""
        self.read()
        self._denoise()

    def read(self) -> None:
        """Run pixels and state through the VLM, and cache the keys and values that the expert reads."""
        self._embed_context()
        self._embed_state()
        self._prefill_rows(slice(0, self.layout.length), "all")

    def observe(self) -> None:
        """Run images and instruction, which do not attend to the state."""
        self._embed_context()
        self._prefill_rows(slice(0, self.layout.length - 1), "context")

    def act(self) -> None:
        """Run the rest of `replan` after `observe`."""
        self._embed_state()
        self._prefill_rows(self.layout.state, "state")
        self._denoise()

    def guide(self, guidance: Guidance) -> None:
        """Compute actions from noise that continue the leftover ones; call `read` first."""
        prefix = [cache[:, :, :, : self.layout.length] for cache in self._expert_caches]

        def field(x: Tensor, time: float) -> Tensor:
            return self._expert(velocity, x, time, prefix, None)

        self.actions.copy_(integrate(guided(field, guidance), self.noise, *self._steps))

    def _embed_context(self) -> None:
        self._hidden.copy_(self._template)
        for size, pixels in self.pixels.items():
            tokens = self._embed_images(self.network.vision, pixels, self._patch_positions[size])
            spans = [span for image_size, span in self.layout.images if image_size == size]
            for span, camera in zip(spans, torch.split(tokens, self.shape.batch), strict=True):
                self._hidden[:, span] = camera

    def _embed_state(self) -> None:
        self._hidden[:, -1] = self.network.state(self.state)

    def _prefill_rows(self, rows: slice, bias: str) -> None:
        cosines, sines = self._rotary["prefix"]
        rotary, bias_of_rows = (cosines[:, :, rows], sines[:, :, rows]), self._biases[bias]
        hidden = self._hidden[:, rows]
        self._prefill(self.network, hidden, rotary, bias_of_rows, self._caches, self._cross_caches, rows)

    def _denoise(self) -> None:
        rows = slice(self.layout.length, self.layout.length + self._chunk)

        def field(x: Tensor, time: float) -> Tensor:
            return self._expert(self._velocity, x, time, self._expert_caches, rows)

        self.actions.copy_(integrate(field, self.noise, *self._steps))

    def _expert(
        self,
        velocity: Callable[..., Tensor],
        x: Tensor,
        time: float,
        caches: list[Tensor],
        rows: slice | None,
    ) -> Tensor:
        if time not in self._time_biases:
            self._time_biases[time] = time_bias(self.network, time)
        own = self._rotary["suffix"], self._biases["self"]
        cross = self._cross_rotary, self._biases["cross"]
        return velocity(self.network, x, self._time_biases[time], caches, rows, own, cross)
