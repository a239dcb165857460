"""SmolVLA's network for its engine: packed weights, and its parts as functions of them and of tensors.

Fused are query, key and value projections, and on a GPU gate and up. Folded into weights are the scale of
every RMS norm and of image embeddings, and the action projection into the MLP behind it, whose time half
becomes a constant for each time.
"""

# B batch, P prefix tokens, C chunk, A action width, R rows of hidden states (tokens of the batch, sample by
# sample), D width of the VLM, E width of the expert, K key/value heads, H head width.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.layers import merge_heads, split_heads
from smolact.policies.common.flow_matching import time_embedding
from smolact.policies.inference.decoder import PackedDecoderLayer, Rotary, pack_decoder_layer, run_layer
from smolact.policies.inference.packing import PackedLinear, WeightPacker, plain_weights
from smolact.policies.inference.vision import PackedVision, pack_vision

Kernels = Callable[..., PackedDecoderLayer]
"""`kernels.with_kernels`."""


class ExpertLayer(NamedTuple):
    """A layer of the expert."""

    packed: PackedDecoderLayer
    reads: int
    """The VLM layer whose keys and values it attends to."""
    cross: tuple[PackedLinear, PackedLinear] | None
    """A cross-attention layer's projections from the VLM's keys and values to its own; None in others."""


class ActionWeights(NamedTuple):
    """The weights between noisy actions and the expert."""

    input: Tensor
    """(E, A): the action projection, and behind it the half of the time MLP's first layer that reads it."""
    hidden: PackedLinear
    output: PackedLinear
    eps: float
    time: Tensor
    """(E, E) float64: the half of the time MLP's first layer that reads the time embedding."""
    bias: Tensor
    """(E,) float64."""
    periods: tuple[float, float]


class Network(NamedTuple):
    """All weights and sizes, without activations."""

    device: torch.device
    dtype: torch.dtype
    vision: PackedVision
    embeddings: Tensor
    state: PackedLinear
    text: list[PackedDecoderLayer]
    """The VLM's layers up to the last one that the expert reads."""
    expert: list[ExpertLayer]
    actions: ActionWeights
    heads: int
    key_heads: int
    head_width: int
    image_start: list[int]
    image_end: list[int]


def pack_network(policy: Any, packer: WeightPacker, kernels: Kernels | None = None) -> Network:
    """Pack a policy's weights.

    Args:
        packer: sets the precision, and whether the policy's own weights are released.
        kernels: makes layers be computed by kernels of our own: all of the expert, the rotation of the VLM's.
    """
    model = policy.model
    joint, vlm = model.vlm_with_expert, model.vlm_with_expert.vlm.model
    config, last = joint.config.text_config, joint.read_layers[-1]
    device = next(policy.parameters()).device
    # Image tokens, like text, are scaled by the root of their width.
    vision = pack_vision(packer, vlm, math.sqrt(config.hidden_size))
    embeddings = packer.to_device(vlm.text_model.embed_tokens.weight)
    on_gpu = device.type != "cpu"
    text: list[PackedDecoderLayer] = []
    for index, layer in enumerate(vlm.text_model.layers[: last + 1]):
        packed = pack_decoder_layer(packer, layer, config, with_queries=index < last, fuse_gates=on_gpu)
        text.append(packed if kernels is None else kernels(packed, products=False))
        packer.release(layer)
    expert: list[ExpertLayer] = []
    fuse_gates = on_gpu or kernels is not None
    for layer, reads, crosses in zip(joint.lm_expert.layers, joint.read_layers, joint.cross, strict=True):
        packed = pack_decoder_layer(
            packer, layer, config, with_keys=not crosses, fuse_gates=fuse_gates, often=True
        )
        # These read all rows of the prefix, once a replan.
        cross = (
            [packer.pack([layer.self_attn.k_proj]), packer.pack([layer.self_attn.v_proj])] if crosses else []
        )
        packed = packed if kernels is None else kernels(packed)
        expert.append(ExpertLayer(packed, reads, (cross[0], cross[1]) if crosses else None))
        packer.release(layer)
    network = Network(
        device,
        packer.dtype,
        vision,
        embeddings,
        packer.pack([model.state_proj], exact=True),
        text,
        expert,
        _pack_actions(policy, packer),
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        model.image_start,
        model.image_end,
    )
    packer.release(policy)
    return network


def _pack_actions(policy: Any, packer: WeightPacker) -> ActionWeights:
    model, config = policy.model, policy.config
    norm = model.vlm_with_expert.lm_expert.norm
    # action_time_mlp_in reads the projected action and the time: W = [W_action | W_time].
    weight, bias = _float64_weights(model.action_in_proj)
    inner, inner_bias = _float64_weights(model.action_time_mlp_in)
    action_weight, time_weight = inner.chunk(2, dim=1)
    return ActionWeights(
        (action_weight @ weight).float().to(next(policy.parameters()).device),
        packer.pack([model.action_time_mlp_out], exact=True),
        packer.pack([model.action_out_proj], norm.weight, exact=True),
        norm.eps,
        time_weight,
        action_weight @ bias + inner_bias,
        (config.min_period, config.max_period),
    )


def _float64_weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    # On the CPU, since not every device supports float64.
    weight, bias = plain_weights(layer)
    assert bias is not None
    return weight.detach().cpu().double(), bias.detach().cpu().double()


def time_bias(network: Network, time: float) -> Tensor:
    """Return the time's constant (E,) inside the action embedding's MLP."""
    weights = network.actions
    vector = time_embedding(torch.tensor([time]), len(weights.bias), *weights.periods)[0].double()
    return (weights.time @ vector + weights.bias).float().to(network.device)


def embed_tokens(network: Network, tokens: Tensor) -> Tensor:
    """Embed token ids (…, L) as embeddings (…, L, D): unscaled, as special tokens around an image are."""
    return F.embedding(tokens.to(network.device), network.embeddings)


def prefill(
    network: Network,
    hidden: Tensor,
    rotary: Rotary,
    bias: Tensor | None,
    caches: Sequence[Tensor],
    cross_caches: Mapping[int, Tensor],
    rows: slice,
) -> None:
    """Run rows of the prefix through the VLM, and write what the expert reads of them into the caches.

    Args:
        hidden: (B, L, D), the embeddings of these rows.
        rotary: the tables of their positions.
        bias: hides slots of the cache up to the last row.
        caches: of each VLM layer, (2, B, K, P or more, H).
        cross_caches: of each cross-attention layer, (2, B, K, P, H), by the number of the VLM layer that it
            reads.
        rows: their places in the prefix.
    """
    hidden = hidden.flatten(0, 1)
    for layer, cache in zip(network.text, caches, strict=True):
        hidden = run_layer(layer, hidden, rotary, cache[:, :, :, : rows.stop], rows, bias)
    for expert in network.expert:
        for index, product in enumerate(expert.cross or ()):
            own = product(merge_heads(caches[expert.reads][index, :, :, rows]))
            cross_caches[expert.reads][index, :, :, rows] = split_heads(own, network.head_width)


def velocity(
    network: Network,
    noisy: Tensor,
    time_bias: Tensor,
    caches: Sequence[Tensor],
    rows: slice | None,
    own: tuple[Rotary, Tensor | None],
    cross: tuple[Rotary, Tensor | None],
) -> Tensor:
    """Return the velocity (B, C, A), float32, of noisy actions (B, C, A), float32.

    Args:
        caches: of each layer of the expert, (2, B, K, P, H), or (2, B, K, P + C, H) if the layer attends to
            action tokens too and `rows` is given.
        rows: the slots of action tokens in such a cache, which is changed; None changes none, and can be
            differentiated.
        own, cross: rotary tables and bias of layers that attend to action tokens too, and of those that do
            not.
    """
    weights = network.actions
    embedded = F.silu(F.linear(noisy.flatten(0, 1), weights.input, time_bias))
    hidden = weights.hidden(embedded.to(network.dtype))
    for layer, cache in zip(network.expert, caches, strict=True):
        rotary, bias = own if layer.cross is None else cross
        hidden = run_layer(layer.packed, hidden, rotary, cache, rows, bias)
    return weights.output.normed(hidden, weights.eps).float().view(noisy.shape)
