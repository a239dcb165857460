"""SmolVLM: a SigLIP vision tower, a connector that packs patches into tokens, and a small Llama.

Its distinctive parts:
- images go in whole (or as sub-images), 16×16 patches become tokens of a bidirectional transformer;
- pixel shuffle folds each `scale_factor`² patches into one token, a single linear layer projects it to the text width;
- text and image tokens share one causal decoder.

Parameter names are those of transformers' `SmolVLMForConditionalGeneration`, so that weights of the Hub load as they are.
Source: Marafioti et al. 2025, "SmolVLM: Redefining small and efficient multimodal models"; Zhai et al. 2023, "SigLIP".
"""

# B batch, I images, P patches, T image tokens, L text tokens, D width.

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.config import SmolVLMConfig, TextConfig, VisionConfig
from smolact.backbones.layers import (
    ActivationCheckpointing,
    DecoderLayer,
    RMSNorm,
    attend,
    merge_heads,
    rotary_tables,
    rotate,
    split_heads,
)
from smolact.errors import FeatureError

CACHED = 32 * 2**20
"""The assumed bytes of activations that fit into a CPU's last-level cache."""

KeyValues = tuple[Tensor, Tensor]
"""Rotated keys and values of one layer, each (B, K, S, H)."""


def patch_positions(rows: int, columns: int, side: int, device: torch.device) -> Tensor:
    """The position id of each patch of a rows × columns image on the tower's own side × side grid; (rows * columns,).

    An image of another shape is stretched over the grid: patch i of n takes the cell that i / n falls into. Computed in
    float32 as the reference does, since its rounding decides border cases (transformers, SmolVLMVisionEmbeddings).
    """
    borders = torch.arange(1 / side, 1.0, 1 / side, device=device)
    row, column = (
        torch.bucketize(
            (
                torch.arange(n, dtype=torch.float32, device=device) * (1.0 / torch.tensor(n, device=device))
            ).clamp(max=1.0 - 1e-6),
            borders,
            right=True,
        )
        for n in (rows, columns)
    )
    return (row[:, None] * side + column).flatten()


def unfold_patches(pixels: Tensor, size: int) -> Tensor:
    """Cut pixels (I, C, height, width) into the whole patches that they hold, (I, P, C * size²), row by row.

    A convolution whose stride is its kernel is a matrix product of these, and much faster as one.
    """
    rows, columns = pixels.shape[-2] // size, pixels.shape[-1] // size
    images, channels = pixels.shape[:2]
    cropped = pixels[..., : rows * size, : columns * size]
    patches = cropped.reshape(images, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
    return patches.flatten(3).flatten(1, 2)


def pixel_shuffle(patches: Tensor, rows: int, columns: int, factor: int) -> Tensor:
    """Fold each factor × factor block of patches (B, rows * columns, D) into one token (B, T, D * factor²).

    Raises:
        FeatureError: the grid does not divide by `factor`.
    """
    if rows % factor or columns % factor:
        raise FeatureError(
            f"An image became {rows}×{columns} patches, which do not divide by the connector's scale_factor={factor}. "
            "Resize images to another size (--policy.resize_imgs_with_padding)."
        )
    images, _, width = patches.shape
    blocks = patches.reshape(images, rows // factor, factor, columns // factor, factor, width)
    return blocks.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


class VisionEmbeddings(nn.Module):
    """Patches and their positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.side = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(self.side**2, config.hidden_size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, int, int]:
        """Pixels (I, 3, height, width) to patches (I, P, D) and the grid's rows and columns."""
        rows, columns = (side // self.patch_size for side in pixels.shape[-2:])
        projection = self.patch_embedding
        patches = F.linear(
            unfold_patches(pixels, self.patch_size), projection.weight.flatten(1), projection.bias
        )
        positions = patch_positions(rows, columns, self.side, pixels.device)
        return patches + self.position_embedding(positions), rows, columns


class VisionAttention(nn.Module):
    """Bidirectional attention over all patches of an image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_width = width // config.num_attention_heads
        # In the reference's order: an optimizer's state on disk identifies parameters by their index.
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(I, P, D) to (I, P, D)."""
        queries, keys, values = (
            split_heads(project(x), self.head_width) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.out_proj(merge_heads(attend(queries, keys, values)))
        return out


class VisionMLP(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(I, P, D) to (I, P, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class VisionLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(I, P, D) to (I, P, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionEncoder(ActivationCheckpointing):
    """The stack of layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(I, P, D) to (I, P, D)."""
        for layer in self.layers:
            x = self.checkpointed_call(layer, x)
        return x


class VisionModel(nn.Module):
    """The vision tower."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> tuple[Tensor, int, int]:
        """Pixels (I, 3, height, width) in [−1, 1] to patch features (I, P, D) and the grid's rows and columns."""
        patches, rows, columns = self.embeddings(pixels)
        return self.post_layernorm(self.encoder(patches)), rows, columns


class ModalityProjection(nn.Module):
    """One linear layer from packed patches to the text width."""

    def __init__(self, config: SmolVLMConfig) -> None:
        super().__init__()
        packed = config.vision_config.hidden_size * config.scale_factor**2
        self.proj = nn.Linear(packed, config.text_config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(I, T, packed) to (I, T, D)."""
        out: Tensor = self.proj(x)
        return out


class Connector(nn.Module):
    """Pixel shuffle, then projection."""

    def __init__(self, config: SmolVLMConfig) -> None:
        super().__init__()
        self.scale_factor = config.scale_factor
        self.modality_projection = ModalityProjection(config)

    def forward(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Patches (I, rows * columns, D_vision) to tokens (I, T, D_text)."""
        tokens: Tensor = self.modality_projection(pixel_shuffle(patches, rows, columns, self.scale_factor))
        return tokens


def make_decoder_layer(config: TextConfig, key_value_width: int | None = None) -> DecoderLayer:
    """A decoder layer of the configuration's sizes, whose keys and values may be made from another width."""
    return DecoderLayer(
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.rms_norm_eps,
        key_value_width=key_value_width,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
    )


class TextModel(ActivationCheckpointing):
    """The Llama decoder, without its output layer. Only `num_layers` layers are built."""

    def __init__(self, config: TextConfig, num_layers: int | None = None) -> None:
        super().__init__()
        self.config = config
        depth = config.num_hidden_layers if num_layers is None else min(num_layers, config.num_hidden_layers)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(make_decoder_layer(config) for _ in range(depth))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, positions: Tensor, mask: Tensor | None, past: list[KeyValues] | None = None
    ) -> tuple[Tensor, list[KeyValues]]:
        """Hidden states (B, L, D) at positions (B, L) to (B, L, D), and each layer's keys and values.

        `past` holds the keys and values of earlier tokens; `mask` (B, L, past + L) is true where a token may attend. Without
        one, and without a past, a token attends to itself and those before it, which costs half.
        """
        tables = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        present: list[KeyValues] = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            before = None if past is None else past[index]
            hidden, keys, values = self.checkpointed_call(_run_layer, layer, hidden, tables, mask, before)
            present.append((keys, values))
        return self.norm(hidden), present


def _run_layer(
    layer: DecoderLayer,
    hidden: Tensor,
    tables: tuple[Tensor, Tensor],
    mask: Tensor | None,
    past: KeyValues | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden states after a layer, and its keys and values with those of earlier tokens before them."""
    normed = layer.input_layernorm(hidden)
    keys, values = rotate(layer.keys(normed), *tables), layer.values(normed)
    if past is not None:
        keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
    attended = attend(rotate(layer.queries(normed), *tables), keys, values, mask, causal=mask is None)
    return layer.output_and_mlp(hidden, attended), keys, values


def put_images(embeds: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Insert image tokens (T, D), in order, into embeddings (B, L, D) where `places` (B, L) is true.

    A training step on a GPU does not synchronize to count the places: if they are not as many as the tokens, its
    embeddings, and so its loss, are NaN.

    Raises:
        FeatureError: there are more or fewer places than tokens.
    """
    tokens, count = tokens.to(embeds.dtype), places.sum()
    if count.is_cuda and torch.is_grad_enabled():
        embeds = embeds.masked_fill(count != len(tokens), torch.nan)
        tokens = tokens.masked_fill(count != len(tokens), torch.nan)
    elif int(count) != len(tokens):
        raise FeatureError(
            f"The prompt has {int(count)} places for image tokens, the images give {len(tokens)}."
        )
    # Each place gathers its token: a scatter's backward pass would synchronize with the host for their number.
    numbers = (places.flatten().long().cumsum(0) - 1).clamp(0, len(tokens) - 1).view_as(places)
    return torch.where(places[..., None], tokens[numbers], embeds)


class SmolVLMModel(nn.Module):
    """Vision tower, connector and text model."""

    def __init__(self, config: SmolVLMConfig, num_text_layers: int | None = None) -> None:
        super().__init__()
        self.vision_config = config.vision_config
        self.vision_model = VisionModel(config.vision_config)
        self.connector = Connector(config)
        self.text_model = TextModel(config.text_config, num_text_layers)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Pixels (I, 3, height, width) in [−1, 1] to image tokens (I, T, D).

        On a CPU a few images at a time, so that the activations between two layers are still in its cache.
        """
        pixels = pixels.to(self.connector.modality_projection.proj.weight)
        vision = self.vision_config
        patches = (pixels.shape[-2] // vision.patch_size) * (pixels.shape[-1] // vision.patch_size)
        widest = patches * vision.intermediate_size * pixels.element_size()  # bytes of an image inside an MLP
        at_once = max(1, CACHED // max(1, widest))
        if pixels.device.type != "cpu" or len(pixels) <= at_once:
            return self._embed(pixels)
        starts = range(0, len(pixels), at_once)
        return torch.cat([self._embed(pixels[start : start + at_once]) for start in starts])

    def _embed(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.connector(*self.vision_model(pixels))
        return tokens


class SmolVLM(nn.Module):
    """The whole model with its output layer, as on the Hub. The slow, plain path that faster ones must equal."""

    def __init__(self, config: SmolVLMConfig, num_text_layers: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = SmolVLMModel(config, num_text_layers)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.text_model.embed_tokens.weight

    def embed(self, input_ids: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Token embeddings (B, L, D) with image tokens in their places; pixels are (I, 3, h, w) in order of appearance.

        Raises:
            FeatureError: the prompt has more or fewer places for image tokens than the images fill.
        """
        embeds: Tensor = self.model.text_model.embed_tokens(input_ids)
        if pixels is None:
            return embeds
        tokens = self.model.embed_images(pixels).flatten(0, 1)
        return put_images(embeds, input_ids == self.config.image_token_id, tokens)

    def forward(self, input_ids: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Logits (B, L, vocabulary) for input_ids (B, L) without padding."""
        return self._step(self.embed(input_ids, pixels), None)[0]

    @torch.no_grad()
    def generate(self, input_ids: Tensor, pixels: Tensor | None = None, max_new_tokens: int = 32) -> Tensor:
        """The most likely continuation, token by token: (B, max_new_tokens)."""
        embeds = self.embed(input_ids, pixels)
        past: list[KeyValues] | None = None
        tokens: list[Tensor] = []
        for _ in range(max_new_tokens):
            logits, past = self._step(embeds, past)
            tokens.append(logits[:, -1].argmax(-1, keepdim=True))
            embeds = self.model.text_model.embed_tokens(tokens[-1])
        return torch.cat(tokens, dim=1)

    def _step(self, embeds: Tensor, past: list[KeyValues] | None) -> tuple[Tensor, list[KeyValues]]:
        length, before = embeds.shape[1], 0 if past is None else past[0][0].shape[2]
        index = torch.arange(before + length, device=embeds.device)
        mask = index <= index[before:, None]
        positions = index[before:].expand(len(embeds), -1)
        hidden, present = self.model.text_model(embeds, positions, mask.expand(len(embeds), -1, -1), past)
        return self.lm_head(hidden), present


def initialize(module: nn.Module, std: float) -> None:
    """Fresh weights as the reference draws them: normal matrices and embeddings, zero biases, norms at one."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm | RMSNorm):
            nn.init.ones_(part.weight)
            if isinstance(part, nn.LayerNorm):
                nn.init.zeros_(part.bias)
