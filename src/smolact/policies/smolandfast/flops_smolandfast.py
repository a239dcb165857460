"""SmolAndFAST's FLOPs and saved values for one sample, counted from its sizes: no weights, no tensors."""

from __future__ import annotations

from collections.abc import Mapping

from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
from smolact.policies.smolandfast.network import SMOLANDFAST
from smolact.policies.workload import (
    PartSize,
    Workload,
    decoder_flops,
    kept_per_token,
    key_width,
    product_flops,
    vision_flops,
    vision_kept,
)

TYPICAL_CAMERAS = 1
TYPICAL_INSTRUCTION = 40
"""Tokens of the prompt without those of images."""
NUMBERS_PER_TOKEN = {"fast": 2.5, "bins": 1.0, "text": 0.25}
"""Approximate numbers per token, by scheme."""


def workload(
    config: SMOLANDFASTConfig,
    network: SMOLANDFAST,
    chunk_shape: tuple[int, int],
    parts: Mapping[str, PartSize],
) -> Workload:
    """Count one sample's FLOPs, and the values that a training step saves for the backward pass.

    An answer's tokens follow from the chunk's numbers (`NUMBERS_PER_TOKEN`), and images count no tiles. The first token comes
    with the prefix; each further one takes a pass.
    """
    sizes, vocabulary = network.vlm.config, network.vocabulary
    text = sizes.text_config
    cameras = len(config.image_features) or TYPICAL_CAMERAS
    side = sizes.vision_config.image_size
    patches = (side // sizes.vision_config.patch_size) ** 2
    steps, size = chunk_shape
    prefix = cameras * sizes.image_tokens + TYPICAL_INSTRUCTION
    answer = round(steps * size / NUMBERS_PER_TOKEN[config.action_tokens]) + 1

    width, heads, keys = text.hidden_size, text.num_attention_heads * text.head_dim, key_width(text)

    def layers(tokens: int, visible: int) -> int:
        layer = decoder_flops(tokens, width, heads, text.intermediate_size, visible)
        return text.num_hidden_layers * (layer + 2 * product_flops(tokens, width, keys))

    generated = answer - 1  # the grammar implies the end
    inputs = prefix + answer - 1  # the last token is no input
    logits = product_flops(1, width, len(vocabulary.words))

    trains = {part for part, count in parts.items() if count.trained}
    kept = kept_per_token(width, heads, keys, text.intermediate_size, "text model" in trains)
    kept_values = (prefix + answer) * text.num_hidden_layers * kept + answer * text.vocab_size
    if "vision tower" in trains:
        kept_values += cameras * vision_kept(sizes, patches)
    return Workload(
        assumed=f"{cameras} images of {side}×{side}, {TYPICAL_INSTRUCTION} tokens of text, an answer of {answer}",
        vision=cameras * vision_flops(sizes, patches),
        prefix=layers(prefix, prefix) + logits,
        expert=layers(1, prefix + generated // 2) + logits,
        denoising_steps=generated - 1,
        prefix_once=True,
        kept_values=kept_values,
        answer=layers(inputs, inputs)
        - layers(prefix, prefix)
        + product_flops(answer, width, text.vocab_size)
        - logits,
        passes="token, one pass",
    )
