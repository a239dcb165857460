"""SmolAndFAST's answers beside transformers' `generate`, and its training step beside transformers' own, on the same weights.

    python benchmarks/answers.py [--vlm=smolvlm2-256m] [--tokens=32] [--repeats=3] [--threads=2] [--output=FILE]
    python benchmarks/answers.py --device=cuda --scale-factor=4,1 --answers=1,8 --batch=16

Needs transformers beside smolact. Weights are random: what is measured does not depend on them. Each side answers the same
prompt of one image with as many tokens, and the sides take turns; a token's time is that of all after the first, divided. Beside
the clock stands the processor, which other work on the machine disturbs less, or the time between two events of a GPU. Sides say
how far the scores after the prompt, and losses and gradients, are from smolact's in float32.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parent))
from measuring import (
    Contest,
    Side,
    Stopwatch,
    computing_in,
    gradients,
    parser_of,
    precisions,
    profiled,
    relative,
    run,
    setting_of,
    table,
    worst,
)

from smolact.backbones.presets import find_vlm
from smolact.backbones.smolvlm import initialize
from smolact.policies.inference.precision import check_kernels
from smolact.policies.smolandfast.generation import ActionWriter, Slate
from smolact.policies.smolandfast.modeling_smolandfast import SMOLANDFAST
from smolact.policies.smolandfast.schemes import ActionVocabulary, Bins

TEXT, ACTIONS = 60, 256
OURS, THEIRS = "smolact", "transformers"

Named = tuple[str, Callable[[], Side]]


def main() -> None:
    """Measure both sides."""
    parser = parser_of(__doc__, repeats=3)
    parser.add_argument("--vlm", default="smolvlm2-256m")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--answers", default="1", help="written at once; several with commas, none: 0")
    parser.add_argument("--batch", type=int, default=1, help="of the training step; none: 0")
    parser.add_argument(
        "--scale-factor",
        default="4",
        help="of the connector, several with commas; 1 is the policy's default: 1024 tokens an image",
    )
    parser.add_argument(
        "--padded",
        type=int,
        default=1536,
        help="to how many tokens SmolAndFAST's authors pad (max_input_seq_len)",
    )
    parser.add_argument(
        "--kernels", action="store_true", help="only engines with kernels of our own, beside those without"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    dtypes = precisions(device, arguments.bfloat16)
    record = setting_of(device) | {
        "vlm": arguments.vlm,
        "tokens": arguments.tokens,
        "base": f"{OURS}, {list(dtypes)[-1]}" if arguments.kernels else f"{THEIRS}, float32",
        "differences": f"to '{OURS}' in float32",
    }

    def measure(group: str, sides: Iterator[Named], samples: int | None = None) -> Contest:
        contest = Contest(device, record["base"])
        for name, make in sides:
            contest.add(name, make)
        run(record, group, contest, arguments, samples)
        return contest

    quickest: dict[str, Side] = {}
    for factor in map(int, arguments.scale_factor.split(",")):
        models = Models.make(arguments.vlm, factor, device)
        told = f"a prompt of {models.prompt(1).ids.shape[1]} tokens"
        for size in map(int, arguments.answers.split(",")):
            if size:
                group = f"a token after the first, {told}, batch {size}"
                found = measure(group, answers(models, size, dtypes, arguments))
                for shown in (f"{OURS}, {list(dtypes)[-1]}", f"{OURS}, {list(dtypes)[-1]}, triton"):
                    if shown in found.sides:
                        quickest[f"{group}: an answer, {shown}"] = found.sides[shown]
        if arguments.batch:
            steps = training_steps(models, dtypes, arguments)
            group = f"a training step, {told}, batch {arguments.batch}"
            measure(group, steps, arguments.batch)
    for name, side in quickest.items() if arguments.profile else ():
        profiled(name, side, device, arguments.profile)
    sys.stdout.write(table(record) + "\n")
    sys.exit(bool(record["failed"]))


@dataclass(frozen=True)
class Prompt:
    """Token ids (B, L), which of them count, pixels (B, 3, h, w)."""

    ids: Tensor
    valid: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Models:
    """Both sides, with the same weights."""

    ours: SMOLANDFAST
    theirs: SmolVLMForConditionalGeneration
    device: torch.device

    @classmethod
    def make(cls, vlm: str, scale_factor: int, device: torch.device) -> Models:
        """Of a preset's shapes; the vision tower is frozen."""
        torch.manual_seed(0)
        source = find_vlm(vlm)
        words = source.config.text_config.vocab_size
        spoken = tuple(range(words - 300, words - 300 - ACTIONS, -1))
        ours = SMOLANDFAST(
            replace(source.config, scale_factor=scale_factor), ActionVocabulary(spoken, end=2, pad=2)
        )
        initialize(ours, 0.02)
        theirs = SmolVLMForConditionalGeneration(
            SmolVLMConfig(**{**source.raw_config, "scale_factor": scale_factor})
        )
        missing, extra = theirs.load_state_dict(ours.vlm.state_dict(), strict=False)
        assert not extra and not [name for name in missing if "lm_head" not in name], (missing, extra)
        # Under autocast some versions of transformers would put bfloat16 among float32, and fail; later ones do this.
        theirs.model.connector.register_forward_hook(
            lambda part, given, made: made.to(next(part.parameters()).dtype)
        )
        for model in (ours.vlm, theirs):
            model.model.vision_model.requires_grad_(False)
        return cls(ours.eval().to(device), theirs.eval().to(device), device)

    def prompt(self, size: int) -> Prompt:
        """So many of one image and some text each."""
        config, generator = self.ours.vlm.config, torch.Generator().manual_seed(1)
        image = torch.full((size, config.image_tokens), config.image_token_id)
        ids = torch.cat([image, torch.randint(100, 1000, (size, TEXT), generator=generator)], 1)
        height = config.vision_config.image_size
        pixels = torch.rand(size, 3, height, height, generator=generator) * 2 - 1
        valid = torch.ones_like(ids, dtype=torch.bool)
        return Prompt(*(part.to(self.device) for part in (ids, valid, pixels)))

    @torch.no_grad()
    def scores(self, prompt: Prompt) -> Tensor:
        """Of the action tokens and the end after a prompt, (B, V + 1), by ours."""
        hidden, _ = self.ours._read(self.ours.vlm.embed(prompt.ids, prompt.pixels), prompt.valid)
        return self.ours.vlm.lm_head(hidden[:, -1])[:, self.words]

    @property
    def words(self) -> Tensor:
        """Action tokens and the end."""
        vocabulary = self.ours.vocabulary
        return torch.tensor([*vocabulary.words, vocabulary.end], device=self.device)


class Timed(ActionWriter):
    """Starts the watch again after the first token of an answer."""

    watch: Stopwatch | None = None
    graphs = True

    def _advance(self, slate: Slate, seen: int) -> None:
        if self.watch is not None:
            self.watch.start()
            self.watch = None
        if self.graphs:
            super()._advance(slate, seen)
        else:
            self._step(slate, seen)

    @torch.inference_mode()
    def scores(self, prompt: Prompt) -> Tensor:
        """As `Models.scores`."""
        slate = self._slate_for(*prompt.ids.shape)
        return self._logits(self._read(prompt.ids, prompt.valid, prompt.pixels, slate))


def answers(
    models: Models, size: int, dtypes: dict[str, torch.dtype], arguments: argparse.Namespace
) -> Iterator[Named]:
    """Tokens of answers to so many prompts, one after the other."""
    prompt, tokens, device, ours = models.prompt(size), arguments.tokens, models.device, models.ours
    given = prompt.ids, prompt.valid, prompt.pixels
    grammar = Bins(ACTIONS).grammar(tokens, 1).to(device)
    expected, written = models.scores(prompt), ours.generate(*given, grammar, tokens)

    def engine(dtype: torch.dtype, graphs: bool = True, int8: bool = False, triton: bool = False) -> Side:
        if triton:
            check_kernels(device)
        writer = Timed(ours.vlm, ours.vocabulary, grammar, dtype=dtype, int8=int8, triton=triton)
        writer.graphs = graphs

        def work(watch: Stopwatch | None) -> Tensor:
            writer.watch = watch
            return writer.write(*given, tokens)

        differences = {
            "scores": relative(writer.scores(prompt), expected),
            "tokens": float((work(None) != written).float().mean()),
        }
        return Side(work, differences=differences, units=tokens - 1)

    def without_engine() -> Side:
        def work(watch: Stopwatch) -> None:
            left = iter((watch.start,))

            def choose(logits: Tensor) -> Tensor:
                chosen = logits.argmax(-1)
                for start in left:
                    start()
                return chosen

            ours.generate(*given, grammar, tokens, choose)

        return Side(work, units=tokens - 1)

    def their(dtype: torch.dtype) -> Side:
        model = models.theirs if dtype == torch.float32 else copy.deepcopy(models.theirs).to(dtype)
        inputs = {
            "input_ids": prompt.ids,
            "attention_mask": prompt.valid.long(),
            "pixel_values": prompt.pixels[:, None].to(dtype),
        }

        def work(watch: Stopwatch) -> None:
            left = iter((watch.start,))

            def look(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
                for start in left:
                    start()
                return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

            wanted = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
            model.generate(**inputs, **wanted, pad_token_id=2, stopping_criteria=[look])

        with torch.no_grad():
            scores = model(**inputs).logits[:, -1, models.words].float()
        work(Stopwatch(device))
        return Side(work, differences={"scores": relative(scores, expected)}, units=tokens - 1)

    if arguments.kernels:
        name, dtype = list(dtypes.items())[-1]
        yield f"{OURS}, {name}", lambda: engine(dtype)
        yield f"{OURS}, {name}, triton", lambda: engine(dtype, triton=True)
        return
    for name, dtype in dtypes.items():
        yield f"{OURS}, {name}", lambda dtype=dtype: engine(dtype)
        if device.type == "cuda":
            yield f"{OURS}, {name}, no graphs", lambda dtype=dtype: engine(dtype, graphs=False)
        yield f"{THEIRS}, {name}", lambda dtype=dtype: their(dtype)
    if device.type == "cpu":
        yield f"{OURS}, int8", lambda: engine(torch.float32, int8=True)
    yield f"{OURS}, float32, without an engine", without_engine


def training_steps(
    models: Models, dtypes: dict[str, torch.dtype], arguments: argparse.Namespace
) -> Iterator[Named]:
    """Forward and backward; transformers also with the padding that SmolAndFAST's authors use."""
    batch, device, ours, theirs = arguments.batch, models.device, models.ours, models.theirs
    prompt = models.prompt(batch)
    drawn = torch.randint(0, ACTIONS, (batch, arguments.tokens), generator=torch.Generator().manual_seed(2))
    answer = ours.vocabulary.spoken(drawn).to(device)
    ids = torch.cat([prompt.ids, answer], 1)
    labels = torch.cat([torch.full_like(prompt.ids, -100), answer], 1)
    spoken = torch.ones_like(answer, dtype=torch.bool)

    def our_loss() -> Tensor:
        return ours(prompt.ids, prompt.valid, prompt.pixels, answer, spoken).mean()

    def their_loss(missing: int = 0) -> Tensor:
        padding = 0, missing
        loss: Tensor = theirs(
            input_ids=F.pad(ids, padding, value=2),
            attention_mask=F.pad(torch.ones_like(ids), padding),
            pixel_values=prompt.pixels[:, None],
            labels=F.pad(labels, padding, value=-100),
        ).loss
        return loss

    expected: list[tuple[Tensor, dict[str, Tensor]]] = []

    def stepping(model: torch.nn.Module, loss_of: Callable[[], Tensor], precision: str) -> Side:
        def step(_: object) -> Tensor:
            model.zero_grad()
            with computing_in(precision, device):
                loss = loss_of()
                loss.backward()
            return loss.detach()

        loss, own = step(None), gradients(model)
        if not expected:
            expected.append((loss, own))
        differences = {"loss": relative(loss, expected[0][0]), "gradients": worst(own, expected[0][1])}
        return Side(step, lambda: clear(models), differences)

    names = [*dtypes]
    if device.type == "cuda":
        names.insert(1, "TF32")
    missing = arguments.padded - ids.shape[1]
    for name in names:
        yield f"{OURS}, {name}", lambda name=name: stepping(ours.vlm, our_loss, name)
        yield f"{THEIRS}, {name}", lambda name=name: stepping(theirs, their_loss, name)
        if missing > 0:
            padded = lambda name=name: stepping(theirs, lambda: their_loss(missing), name)  # noqa: E731
            yield f"{THEIRS}, {name}, padded to {arguments.padded}", padded


def clear(models: Models) -> None:
    """No gradients, so that each side's memory is its own."""
    for model in (models.ours, models.theirs):
        model.zero_grad()


if __name__ == "__main__":
    main()
