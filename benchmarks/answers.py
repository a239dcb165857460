"""SmolAndFAST's answers beside transformers' `generate`, and its training step beside transformers' own, on the same weights.

    python benchmarks/answers.py [--vlm=smolvlm2-256m] [--tokens=32] [--threads=2]

Needs transformers beside smolact. Weights are random: what is measured does not depend on them. Each side answers the same
prompt of one image with as many tokens. Prints seconds, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from smolact.backbones.presets import find_vlm
from smolact.backbones.smolvlm import initialize
from smolact.policies.smolandfast.modeling_smolandfast import SMOLANDFAST
from smolact.policies.smolandfast.schemes import Bins
from smolact.policies.smolandfast.vocabulary import ActionVocabulary

TEXT = 60


def best(work: Callable[[], Any], rounds: int = 5) -> float:
    """Seconds of the best round."""
    work()
    found = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - began)
    return found


def main() -> None:
    """Measure both sides."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vlm", default="smolvlm2-256m")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="of the training step")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    source = find_vlm(arguments.vlm)
    config, size = source.config, source.config.vision_config.image_size
    words = config.text_config.vocab_size
    bins = Bins(256)
    vocabulary = ActionVocabulary(tuple(range(words - 300, words - 300 - bins.n, -1)), end=2, pad=2)
    ours = SMOLANDFAST(config, vocabulary)
    initialize(ours, 0.02)
    ours.eval()
    theirs = SmolVLMForConditionalGeneration(SmolVLMConfig(**source.raw_config)).eval()
    missing, extra = theirs.load_state_dict(ours.vlm.state_dict(), strict=False)
    assert not extra and not [name for name in missing if "lm_head" not in name], (missing, extra)

    image = torch.full((1, config.image_tokens), config.image_token_id)
    prompt = torch.cat([image, torch.randint(100, 1000, (1, TEXT))], 1)
    valid, pixels = torch.ones_like(prompt, dtype=torch.bool), torch.rand(1, 3, size, size) * 2 - 1

    def answer(tokens: int) -> Callable[[], Any]:
        grammar = bins.grammar(tokens, 1)
        return lambda: ours.generate(prompt, valid, pixels, grammar, tokens)

    def generate(tokens: int) -> Callable[[], Any]:
        with torch.inference_mode():
            return lambda: theirs.generate(
                input_ids=prompt,
                attention_mask=valid.long(),
                pixel_values=pixels[:, None],
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=2,
            )

    found: dict[str, Any] = {"vlm": arguments.vlm, "prompt": prompt.shape[1], "tokens": arguments.tokens}
    for name, make in (("smolact", answer), ("transformers", generate)):
        first, whole = best(make(1)), best(make(arguments.tokens))
        found[name] = {
            "first token, s": round(first, 4),
            "an answer, s": round(whole, 4),
            "tokens a second, after the first": round((arguments.tokens - 1) / (whole - first), 1),
        }
    found["ratio of answers"] = round(
        found["transformers"]["an answer, s"] / found["smolact"]["an answer, s"], 2
    )
    found["ratio of tokens a second"] = round(
        found["smolact"]["tokens a second, after the first"]
        / found["transformers"]["tokens a second, after the first"],
        2,
    )

    batch = arguments.batch
    prompts, masks = prompt.repeat(batch, 1), valid.repeat(batch, 1)
    many = pixels.repeat(batch, 1, 1, 1)
    spoken = vocabulary.spoken(torch.randint(0, bins.n, (batch, arguments.tokens)))
    labels = torch.cat([torch.full_like(prompts, -100), spoken], 1)

    def our_step() -> None:
        ours.zero_grad()
        losses = ours(prompts, masks, many, spoken, torch.ones_like(spoken, dtype=torch.bool))
        losses.mean().backward()

    def their_step() -> None:
        theirs.zero_grad()
        theirs(
            input_ids=torch.cat([prompts, spoken], 1),
            attention_mask=torch.ones_like(labels),
            pixel_values=many[:, None],
            labels=labels,
        ).loss.backward()

    for model in (ours.vlm, theirs):
        model.model.vision_model.requires_grad_(False)
    steps = {"smolact, s": round(best(our_step, 3), 3), "transformers, s": round(best(their_step, 3), 3)}
    found["training step"] = {
        "batch": batch,
        **steps,
        "ratio": round(steps["transformers, s"] / steps["smolact, s"], 2),
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
