"""Trains the weights that the VLM preset `tiny` ships: to find on a picture of the tabletop what a sentence names.

    PYTHONPATH=src python scripts/pretrain_tiny.py --output=src/smolact/backbones/assets/tiny

Pictures, sentences and answers are synthetic: random scenes drawn by `smolact.envs.tabletop_drawing`, and the sentences
below with the colours and places filled in. What is learnt, with linear heads that are thrown away afterwards:
- each image token tells which blocks, or the pusher, lie near it, and where;
- each word that names a block or a zone tells where on the picture that is;
- every token, of text and of image, tells where the first and the last thing named are, which way it is from the one to
  the other, and where one would stand behind the first to push it to the last, and how far and which way from the pusher
  the first and that point are: what the sentence is about is then wherever a reader looks;
- up to half of the other words are any word at all, so that it is the names that count;
- in the first two layers a block's word attends to the image token that the block is on, and in the second and third
  every token to the words that name things: without that push, binding words to colours takes many times longer.

Tokens attend to each other as in SmolVLA's prefix, both ways. No phrasing that the tabletop keeps out of training is among
the sentences, nor one of their verbs, nor an instruction about a pair of colour and place that it keeps out.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from smolact import durable
from smolact.backbones.layers import DecoderLayer, attend, rotary_tables, rotate
from smolact.backbones.presets import find_vlm
from smolact.backbones.smolvlm import SmolVLM, initialize
from smolact.cli.progress import announce, progress_bar
from smolact.envs.tabletop_drawing import draw_table
from smolact.envs.tabletop_language import PHRASINGS, UNSEEN_COMBINATIONS
from smolact.envs.tabletop_scene import BLOCK_SIDE, COLORS, PUSHER_RADIUS, ZONES, Block, TableState
from smolact.policies.common.attention import positions_of

NAMES = (*COLORS, *ZONES, "pusher")
"""What can be pointed at, by number."""
PUSHER = NAMES.index("pusher")
FIRST_WORD, VOCABULARY = 100, 1024
"""Token ids from here on are pieces of words; those before are special."""
BEHIND = 0.14
"""How far behind a block one stands to push it, in table sides."""
TOLD = 14
SEEN = (*range(len(COLORS)), PUSHER)
"""What an image token is asked about: what moves."""

ONE_BLOCK = (
    *PHRASINGS["reach"]["train"],
    "where is the {color} block",
    "where is the {color} one",
    "point to the {color} block",
    "look at the {color} block",
    "look for the {color} block",
    "locate the {color} block",
    "the {color} one",
    "{color}",
    "a {color} block",
    "travel over to the {color} block",
    "run up to the {color} block",
    "walk towards the {color} block",
    "stay at the {color} block",
    "now visit the {color} block",
    "see the {color} block on the table",
    "there is a {color} block on the table",
    "could you go to the {color} block",
    "your task is to reach the {color} block",
    "follow the {color} block",
    "choose the {color} block",
    "which block is {color}",
    "the block that is {color}",
    "hold still at the {color} block",
    "your aim is the {color} block",
    "we need you at the {color} block",
)
BLOCK_AND_PLACE = (
    *PHRASINGS["push"]["train"],
    "carry the {color} block to the {place} zone",
    "move the {color} one to the {place}",
    "push {color} to the {place} zone",
    "the {color} block goes to the {place}",
    "drive the {color} block over to the {place}",
    "send the {color} block over to the {place}",
    "how far is the {color} block from the {place} zone",
    "could you bring the {color} block to the {place} zone",
    "your task is to get the {color} block to the {place}",
    "now the {color} block is to be at the {place}",
    "hand the {color} block over to the {place} zone",
    "pull the {color} block towards the {place} zone",
    "roll the {color} block to the {place}",
    "we need the {color} block at the {place}",
    "keep the {color} block inside the {place} zone",
    "the {color} block lives in the {place} zone",
    "the {color} block should move to the {place}",
    "return the {color} block to the {place} zone",
    "draw a line from the {color} block to the {place} zone",
)
TWO_BLOCKS = (
    "is the {color} block near the {place} block",
    "go from the {color} block to the {place} block",
    "the {color} block and the {place} block",
    "push the {color} block to the {place} block",
)
PLACE = ("where is the {place} zone", "go to the {place} zone", "the {place}", "point to the {place} zone")


class Prompts(NamedTuple):
    """N prompts. `marks` (N, 2) are tokens to read, `named` (N, 2) what each stands for, −1 where there is no more."""

    ids: Tensor
    valid: Tensor
    marks: Tensor
    named: Tensor


class Pictures(NamedTuple):
    """N pictures (N, S, S, 3) uint8, where everything of `NAMES` is (N, 11, 2), and whether it is there (N, 11)."""

    pixels: Tensor
    where: Tensor
    there: Tensor


def make_prompts(tokenizer: Tokenizer) -> dict[str, Prompts]:
    """Every sentence with every filling, by kind."""
    colors, places = tuple(COLORS), tuple(ZONES)
    pairs: dict[str, list[tuple[str, str | None, str | None]]] = {
        "one": [(text, color, None) for text in ONE_BLOCK for color in colors],
        "place": [
            (text, color, place)
            for text in BLOCK_AND_PLACE
            for color in colors
            for place in places
            if (color, place) not in UNSEEN_COMBINATIONS
        ],
        "two": [
            (text, color, other)
            for text in TWO_BLOCKS
            for color in colors
            for other in colors
            if color != other
        ],
        "zone": [(text, None, place) for text in PLACE for place in places],
    }
    unseen = {text for kind in PHRASINGS.values() for text in kind["unseen"]}
    assert not unseen & {*ONE_BLOCK, *BLOCK_AND_PLACE}
    return {kind: _encode(tokenizer, filled) for kind, filled in pairs.items()}


def _encode(tokenizer: Tokenizer, filled: list[tuple[str, str | None, str | None]]) -> Prompts:
    rows: list[tuple[list[int], list[tuple[int, int]]]] = []
    for text, color, place in filled:
        sentence = text.format(color=color, place=place)
        encoding = tokenizer.encode(sentence + "\n")
        places: list[tuple[int, int]] = []
        begin = 0
        for word in (color, place):
            if word is not None:
                begin = sentence.index(word, begin)
                last = begin + len(word) - 1
                places.append(
                    (next(i for i, (a, b) in enumerate(encoding.offsets) if a <= last < b), NAMES.index(word))
                )
        rows.append((encoding.ids, places))
    length = max(len(ids) for ids, _ in rows)
    ids, valid = torch.full((len(rows), length), 2), torch.zeros(len(rows), length, dtype=torch.bool)
    marks, named = torch.zeros(len(rows), 2, dtype=torch.long), torch.full((len(rows), 2), -1)
    for row, (tokens, found) in enumerate(rows):
        ids[row, : len(tokens)], valid[row, : len(tokens)] = torch.tensor(tokens), True
        for column, (token, name) in enumerate(found):
            marks[row, column], named[row, column] = token, name
    return Prompts(ids, valid, marks, named)


def make_pictures(count: int, size: int, random: np.random.Generator) -> Pictures:
    """Random scenes: more crowded than the tabletop's own, with blocks in zones and pushers that touch blocks."""
    pixels = np.empty((count, size, size, 3), np.uint8)
    where, there = np.zeros((count, len(NAMES), 2), np.float32), np.zeros((count, len(NAMES)), bool)
    where[:, len(COLORS) : PUSHER], there[:, len(COLORS) :] = list(ZONES.values()), True
    with progress_bar(count, "pictures") as advance:
        for index in range(count):
            state = _scene(random)
            pixels[index] = draw_table(state, size)
            where[index, PUSHER] = state.pusher
            for block in state.blocks:
                name = NAMES.index(block.color)
                where[index, name], there[index, name] = (block.x, block.y), True
            advance()
    return Pictures(*(torch.from_numpy(array) for array in (pixels, where, there)))


def _scene(random: np.random.Generator) -> TableState:
    colors = random.permutation(list(COLORS))[: random.choice([2, 3, 3, 3, 4])].tolist()
    while True:
        places = random.uniform(0.09, 0.91, (len(colors), 2))
        for place in places:
            if random.random() < 0.25:
                zone = list(ZONES.values())[random.integers(len(ZONES))]
                place[:] = np.clip(zone + random.normal(0.0, 0.08, 2), 0.09, 0.91)
        pusher = random.uniform(PUSHER_RADIUS, 1.0 - PUSHER_RADIUS, 2)
        if random.random() < 0.5:
            angle, away = random.uniform(0.0, 2 * math.pi), random.uniform(0.1, 0.17)
            pusher = np.clip(places[0] + away * np.array((math.cos(angle), math.sin(angle))), 0.04, 0.96)
        gaps = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 9 * np.eye(len(places))
        if gaps.min() > 1.1 * BLOCK_SIDE and np.hypot(*(places - pusher).T).min() > 0.085:
            break
    angles = random.uniform(-np.pi / 4, np.pi / 4, len(colors)).tolist()
    blocks = (
        Block(color, x, y, angle)
        for color, (x, y), angle in zip(colors, places.tolist(), angles, strict=True)
    )
    return TableState((float(pusher[0]), float(pusher[1])), tuple(blocks))


def sine_cosine_positions(side: int, width: int) -> Tensor:
    """Two-dimensional sine-cosine embeddings of amplitude 1, (side², width), rows first."""
    frequency = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], 1)
    return torch.cat([axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)], -1).flatten(0, 1)


def initialize_small(vlm: SmolVLM) -> None:
    """Fresh weights for a narrow model: variance kept by every matrix, embeddings of about one, fixed positions.

    The published models' 0.02 suits widths of a thousand; at a hundred it leaves attention uniform for thousands of steps.
    """
    initialize(vlm, 0.02)
    width = vlm.config.text_config.hidden_size
    with torch.no_grad():
        for part in vlm.modules():
            if isinstance(part, nn.Linear):
                part.weight.normal_(std=part.in_features**-0.5)
        embeddings = vlm.model.vision_model.embeddings
        embeddings.patch_embedding.weight.normal_(std=0.1)
        embeddings.position_embedding.weight.copy_(
            sine_cosine_positions(embeddings.side, embeddings.patch_embedding.out_channels)
        )
        vlm.model.text_model.embed_tokens.weight.normal_(
            std=width**-0.5
        )  # multiplied by the root of the width when read
        vlm.model.connector.modality_projection.proj.weight.mul_(width**-0.5)


class Pointing(nn.Module):
    """The VLM as SmolVLA reads it, and the heads that say where things are."""

    def __init__(self, vlm: SmolVLM) -> None:
        super().__init__()
        self.vlm = vlm
        width = vlm.config.text_config.hidden_size
        self.read_after = (
            2,
            len(vlm.model.text_model.layers) - 1,
        )  # the last layer: only its keys and values are read
        self.near = nn.Linear(width, 3 * len(SEEN))
        self.word = nn.ModuleList(nn.Linear(width, 2) for _ in self.read_after)
        self.end = nn.ModuleList(nn.Linear(width, TOLD) for _ in self.read_after)

    def forward(self, pictures: Pictures, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """The loss, and how far off the words' last readings are in table sides, NaN where a mark is unused (B, 2)."""
        text, batch = self.vlm.model.text_model, torch.arange(len(prompts.ids))
        config = text.config
        scale = math.sqrt(config.hidden_size)
        tokens = (
            self.vlm.model.embed_images(pictures.pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0) * scale
        )
        hidden = torch.cat([tokens, text.embed_tokens(prompts.ids) * scale], 1)
        valid = torch.cat([torch.ones(tokens.shape[:2], dtype=torch.bool), prompts.valid], 1)
        mask = valid[:, None].expand(-1, hidden.shape[1], -1)
        rotary = rotary_tables(positions_of(valid), config.head_dim, config.rope_theta)

        used = prompts.named >= 0
        target = pictures.where[batch[:, None], prompts.named.clamp_min(0)]
        first = target[:, 0]
        both = _ends(pictures.where[:, PUSHER], first, torch.where(used[:, 1:], target[:, 1], first))
        marks = prompts.marks + tokens.shape[1]

        side, length = math.isqrt(tokens.shape[1]), hidden.shape[1]
        cell = (target * side).long().clamp(0, side - 1)
        on_token = F.one_hot(cell[..., 1] * side + cell[..., 0], length)
        at_mark, is_block = F.one_hot(marks, length), used & (prompts.named < len(COLORS))

        loss = self._near_loss(self.near(_norm(tokens)), pictures)
        for index, layer in enumerate(list(text.layers)[: self.read_after[-1]]):
            assert isinstance(layer, DecoderLayer)
            normed = layer.input_layernorm(hidden)
            keys, values = rotate(layer.keys(normed), *rotary), layer.values(normed)
            queries = rotate(layer.queries(normed), *rotary)
            if index < 2:
                loss = loss + _attention_loss(queries, keys, mask, marks, on_token, is_block)
            if index > 0:
                loss = loss + 0.5 * _pooling_loss(queries, keys, mask, at_mark, used, valid)
            hidden = layer.output_and_mlp(hidden, attend(queries, keys, values, mask))
            if index + 1 in self.read_after:
                head = self.read_after.index(index + 1)
                pointed = self.word[head](_norm(hidden[batch[:, None], marks]))
                loss = loss + _distance_loss(pointed[used], target[used])
                told = self.end[head](_norm(hidden))
                loss = loss + _distance_loss(told[valid], both[:, None].expand_as(told)[valid])
        away = (pointed - target).norm(dim=-1).detach()
        return loss, torch.where(used, away, torch.nan)

    def _near_loss(self, read: Tensor, pictures: Pictures) -> Tensor:
        side = math.isqrt(read.shape[1])
        centre = (torch.arange(side) + 0.5) / side
        centres = torch.stack([centre.expand(side, -1), centre[:, None].expand(-1, side)], -1).reshape(
            1, -1, 1, 2
        )
        each = read.reshape(*read.shape[:2], len(SEEN), 3)
        present, offset = each[..., 0], each[..., 1:]
        away = pictures.where[:, None, SEEN] - centres
        there = pictures.there[:, None, SEEN].expand(away.shape[:-1])
        inside = there & (away.abs().amax(-1) < 0.5 / side)
        near = there & (away.abs().amax(-1) < 0.75 / side)
        found = F.binary_cross_entropy_with_logits(present, inside.float())
        return 4 * found + _distance_loss(offset[near], away[near])


def _attention_loss(
    queries: Tensor, keys: Tensor, mask: Tensor, of: Tensor, wanted: Tensor, counts: Tensor
) -> Tensor:
    """Minus the logarithm of how much the tokens `of` (B, M) attend, over all heads, to the `wanted` (B, M, S)."""
    chosen = queries.gather(2, of[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[-1]))
    shared = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    scores = chosen @ shared.transpose(-1, -2) * queries.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask[:, None, :1], float("-inf"))
    share = (scores.softmax(-1).mean(1) * wanted).sum(-1)
    loss: Tensor = -(share + 1e-4).log()[counts].mean()
    return loss


def _pooling_loss(
    queries: Tensor, keys: Tensor, mask: Tensor, at_mark: Tensor, used: Tensor, valid: Tensor
) -> Tensor:
    """Minus the logarithm of how much every token attends, over all heads, to each word that names something."""
    shared = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    scores = queries @ shared.transpose(-1, -2) * queries.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask[:, None], float("-inf"))
    share = scores.softmax(-1).mean(1) @ at_mark.transpose(1, 2).float()  # (B, S, M)
    loss: Tensor = -(share + 1e-4).log()[valid[..., None] & used[:, None]].mean()
    return loss


def _ends(pusher: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """What every token is asked for, (B, TOLD): positions, and how and which way from one to the other."""
    direction = _way(last - first)
    behind = first - BEHIND * direction
    ahead = behind - pusher
    return torch.cat([first, last, 0.2 * direction, behind, first - pusher, ahead, 0.2 * _way(ahead)], -1)


def _way(away: Tensor) -> Tensor:
    return away / away.norm(dim=-1, keepdim=True).clamp_min(0.02)


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _distance_loss(found: Tensor, expected: Tensor) -> Tensor:
    loss: Tensor = 10 * F.smooth_l1_loss(found, expected, beta=0.05)
    return loss


def draw_batch(
    pictures: Pictures, prompts: dict[str, Prompts], count: int, generator: torch.Generator
) -> tuple[Pictures, Prompts]:
    """Random pictures, each with a random sentence about what is on it."""
    chosen = torch.randint(len(pictures.pixels), (count,), generator=generator)
    batch = Pictures(*(part[chosen] for part in pictures))
    kinds = torch.multinomial(
        torch.tensor([0.4, 0.5, 0.06, 0.04]), count, replacement=True, generator=generator
    )
    length = max(part.ids.shape[1] for part in prompts.values())
    rows: list[Prompts] = []
    order: list[Tensor] = []
    for kind, of_kind in enumerate(prompts.values()):
        where = (kinds == kind).nonzero()[:, 0]
        if len(where):
            named = of_kind.named
            told = torch.where(
                named[None] >= 0, batch.there[where][:, named.clamp_min(0)], torch.ones(1, dtype=torch.bool)
            ).all(-1)
            row = torch.multinomial(told.float(), 1, generator=generator)[:, 0]
            missing = length - of_kind.ids.shape[1]
            rows.append(
                Prompts(
                    F.pad(of_kind.ids[row], (0, missing), value=2),
                    F.pad(of_kind.valid[row], (0, missing)),
                    of_kind.marks[row],
                    named[row],
                )
            )
            order.append(where)
    back = torch.cat(order).argsort()
    joined = Prompts(*(torch.cat(parts)[back] for parts in zip(*rows, strict=True)))
    longest = int(joined.valid.sum(1).max())
    joined = joined._replace(ids=joined.ids[:, :longest], valid=joined.valid[:, :longest])
    return batch, joined._replace(ids=_with_strange_words(joined, generator))


def _with_strange_words(prompts: Prompts, generator: torch.Generator) -> Tensor:
    """Token ids of which some are any others: a sentence means what it names, in whatever words."""
    ids = prompts.ids
    share = 0.5 * torch.rand(len(ids), 1, generator=generator)
    strange = torch.rand(ids.shape, generator=generator) < share
    for column in range(prompts.marks.shape[1]):  # what is named stays, word for word, and so does the end
        used = prompts.named[:, column] >= 0
        strange[used, prompts.marks[used, column]] = False
    strange[torch.arange(len(ids)), prompts.valid.sum(1) - 1] = False
    anything = torch.randint(FIRST_WORD, VOCABULARY, ids.shape, generator=generator)
    return torch.where(strange & prompts.valid, anything, ids)


def pretrain(output: Path, steps: int, batch_size: int, lr: float, seed: int, pool: int) -> None:
    """Train, measure on pictures that were not trained on, and write weights and configuration."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    source = find_vlm("tiny")
    vlm = SmolVLM(source.config)
    initialize_small(vlm)
    prompts = make_prompts(Tokenizer.from_file(str(source.tokenizer_folder() / "tokenizer.json")))
    random, size = np.random.default_rng(seed), source.config.vision_config.image_size
    held_out, pictures = make_pictures(1000, size, random), make_pictures(pool, size, random)
    asked = draw_batch(held_out, prompts, 1000, torch.Generator().manual_seed(seed + 1))

    model = Pointing(vlm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
    )
    with progress_bar(steps, "steps") as advance:
        for step in range(1, steps + 1):
            loss, _ = model(*draw_batch(pictures, prompts, batch_size, generator))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance()
            if step % 100 == 0 or step == steps:
                with torch.no_grad():
                    away = model(*asked)[1]
                blocks = away[(asked[1].named >= 0) & (asked[1].named < len(COLORS))]
                within = (blocks < BLOCK_SIDE / 2).float().mean()
                announce(
                    f"step {step}, loss {loss.detach():.3f}, blocks off by {blocks.mean():.4f} "
                    f"(median {blocks.median():.4f}), {within:.1%} within half a block"
                )
                if step % 1000 == 0 or step == steps:
                    save(vlm, output)


def save(vlm: SmolVLM, output: Path) -> None:
    """Weights in bfloat16, as half the size loses nothing that can be measured."""
    durable.make_folder(output)
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in vlm.state_dict().items()
    }
    with durable.replacing_file(output / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def main() -> None:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=20_000, help="pictures; 18 kB of memory each")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("medium")
    pretrain(**vars(arguments))


if __name__ == "__main__":
    main()
