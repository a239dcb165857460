"""SmolAndFAST's answers beside transformers' `generate`, and its training step beside transformers' own, on the same weights.

    python benchmarks/answers.py [--vlm=smolvlm2-256m] [--tokens=32] [--rounds=3] [--threads=2] [--output=FILE]

Needs transformers beside smolact. Weights are random: what is measured does not depend on them. Each side answers the same
prompt of one image with as many tokens, and the sides take turns. Prints medians, by the clock and of the processor (which
other work on the machine disturbs less), and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from smolact.backbones.presets import find_vlm
from smolact.backbones.smolvlm import initialize
from smolact.policies.smolandfast.generation import ActionWriter, Slate
from smolact.policies.smolandfast.modeling_smolandfast import SMOLANDFAST
from smolact.policies.smolandfast.schemes import Bins
from smolact.policies.smolandfast.vocabulary import ActionVocabulary

TEXT = 60


class Stopwatch:
    """When tokens were written: by the clock and of the processor, in milliseconds."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def look(self) -> None:
        self.times.append((time.perf_counter() * 1e3, time.process_time() * 1e3))

    def between(self) -> list[tuple[float, float]]:
        """From each look to the next."""
        return [
            (after[0] - before[0], after[1] - before[1])
            for before, after in zip(self.times, self.times[1:], strict=False)
        ]


class TimedWriter(ActionWriter):
    """Looks at the watch after each token."""

    watch = Stopwatch()

    def _choose(self, hidden: torch.Tensor, slate: Slate) -> None:
        super()._choose(hidden, slate)
        self.watch.look()


def in_turns(sides: dict[str, Callable[[Stopwatch], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Each side's median milliseconds between two looks; a round before them warms up."""
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides if turn % 2 else reversed(sides):
            watch = Stopwatch()
            sides[side](watch)
            if turn:
                found[side] += watch.between()
    return {
        side: {
            kind: round(statistics.median(each[number] for each in times), 2)
            for number, kind in enumerate(("clock", "processor"))
        }
        for side, times in found.items()
    }


def with_ratios(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """How many times as long transformers takes."""
    theirs = found["transformers"]
    return {
        side: {**times, "ratio": {kind: round(theirs[kind] / times[kind], 2) for kind in times}}
        for side, times in found.items()
    }


def training_step(
    ours: SMOLANDFAST,
    theirs: SmolVLMForConditionalGeneration,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    actions: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Forward and backward of both sides, the vision tower frozen; transformers also with the padding that SmolAndFAST's authors use."""
    (prompt, valid, pixels), batch, tokens = inputs, arguments.batch, arguments.tokens
    prompts, masks = prompt.repeat(batch, 1), valid.repeat(batch, 1)
    many = pixels.repeat(batch, 1, 1, 1)
    spoken = ours.vocabulary.spoken(torch.randint(0, actions, (batch, tokens)))
    ids = torch.cat([prompts, spoken], 1)
    labels = torch.cat([torch.full_like(prompts, -100), spoken], 1)
    missing = (0, max(0, arguments.padded - ids.shape[1]))

    def our_step(watch: Stopwatch) -> None:
        ours.zero_grad()
        watch.look()
        losses = ours(prompts, masks, many, spoken, torch.ones_like(spoken, dtype=torch.bool))
        losses.mean().backward()
        watch.look()

    def their_step(watch: Stopwatch, padding: tuple[int, int] = (0, 0)) -> None:
        theirs.zero_grad()
        watch.look()
        loss = theirs(
            input_ids=F.pad(ids, padding, value=2),
            attention_mask=F.pad(torch.ones_like(ids), padding),
            pixel_values=many[:, None],
            labels=F.pad(labels, padding, value=-100),
        ).loss
        loss.backward()
        watch.look()
        seen.append(float(loss.detach()))

    seen: list[float] = []
    for model in (ours.vlm, theirs):
        model.model.vision_model.requires_grad_(False)
    sides = {"smolact": our_step, "transformers": their_step}
    if missing[1]:
        sides["transformers, padded"] = partial(their_step, padding=missing)
    steps = in_turns(sides, arguments.rounds)
    found = ours(prompts, masks, many, spoken, torch.ones_like(spoken, dtype=torch.bool)).mean().item()
    off = max(abs(loss / found - 1) for loss in seen)
    return {
        "batch": batch,
        "tokens": ids.shape[1],
        "padded": ids.shape[1] + missing[1],
        "loss differs by": off,
        **with_ratios(steps),
    }


def answers(
    ours: SMOLANDFAST,
    theirs: SmolVLMForConditionalGeneration,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    bins: Bins,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Tokens of an answer, one after the other."""
    (prompt, valid, pixels), tokens = inputs, arguments.tokens
    grammar = bins.grammar(tokens, 1)
    writer = TimedWriter(ours.vlm, ours.vocabulary, grammar, dtype=torch.float32)
    assert torch.equal(
        writer.write(prompt, valid, pixels, tokens), ours.generate(prompt, valid, pixels, grammar, tokens)
    )

    def writing(writer: TimedWriter) -> Callable[[Stopwatch], None]:
        def write(watch: Stopwatch) -> None:
            writer.watch = watch
            writer.write(prompt, valid, pixels, tokens)

        return write

    def plain(watch: Stopwatch) -> None:
        def choose(logits: torch.Tensor) -> torch.Tensor:
            watch.look()
            return logits.argmax(-1)

        ours.generate(prompt, valid, pixels, grammar, tokens, choose)

    def generate(watch: Stopwatch) -> None:
        def look(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            watch.look()
            return torch.zeros(len(ids), dtype=torch.bool)

        theirs.generate(
            input_ids=prompt,
            attention_mask=valid.long(),
            pixel_values=pixels[:, None],
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=2,
            stopping_criteria=[look],
        )

    rounded = TimedWriter(ours.vlm, ours.vocabulary, grammar, dtype=torch.float32, int8=True)
    held = {"float32": writer.held >> 20, "int8": rounded.held >> 20}
    sides = {
        "smolact": writing(writer),
        "smolact, int8": writing(rounded),
        "smolact, without an engine": plain,
        "transformers": generate,
    }
    return {"megabytes of copied weights": held, **with_ratios(in_turns(sides, arguments.rounds))}


def main() -> None:
    """Measure both sides."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vlm", default="smolvlm2-256m")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="of the training step")
    parser.add_argument(
        "--scale-factor",
        type=int,
        default=4,
        help="of the connector; 1 is the policy's default: 1024 tokens an image",
    )
    parser.add_argument(
        "--padded",
        type=int,
        default=1536,
        help="to how many tokens SmolAndFAST's authors pad (max_input_seq_len)",
    )
    parser.add_argument("--training-only", action="store_true", help="leave the answers out")
    parser.add_argument("--answers-only", action="store_true", help="leave the training step out")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    source = find_vlm(arguments.vlm)
    config = replace(source.config, scale_factor=arguments.scale_factor)
    size = config.vision_config.image_size
    words = config.text_config.vocab_size
    bins = Bins(256)
    vocabulary = ActionVocabulary(tuple(range(words - 300, words - 300 - bins.n, -1)), end=2, pad=2)
    ours = SMOLANDFAST(config, vocabulary)
    initialize(ours, 0.02)
    ours.eval()
    theirs = SmolVLMForConditionalGeneration(
        SmolVLMConfig(**{**source.raw_config, "scale_factor": arguments.scale_factor})
    ).eval()
    missing, extra = theirs.load_state_dict(ours.vlm.state_dict(), strict=False)
    assert not extra and not [name for name in missing if "lm_head" not in name], (missing, extra)

    image = torch.full((1, config.image_tokens), config.image_token_id)
    prompt = torch.cat([image, torch.randint(100, 1000, (1, TEXT))], 1)
    valid, pixels = torch.ones_like(prompt, dtype=torch.bool), torch.rand(1, 3, size, size) * 2 - 1
    inputs = prompt, valid, pixels
    found: dict[str, Any] = {
        "command": "python benchmarks/answers.py " + " ".join(sys.argv[1:]),
        "vlm": arguments.vlm,
        "scale_factor": arguments.scale_factor,
        "prompt": prompt.shape[1],
        "tokens": arguments.tokens,
        "unit": "milliseconds, median",
        "threads": arguments.threads,
        "processors": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "load": [round(load, 1) for load in os.getloadavg()],
    }
    if not arguments.training_only:
        found["a token after the first"] = answers(ours, theirs, inputs, bins, arguments)
    if not arguments.answers_only:
        found["a training step, float32"] = training_step(ours, theirs, inputs, bins.n, arguments)
    text = json.dumps(found, indent=2) + "\n"
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
