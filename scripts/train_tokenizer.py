#!/usr/bin/env python
"""Train the small tokenizer that smolact ships: byte-level BPE on instructions for robots, with SmolVLM's special tokens.

    python scripts/train_tokenizer.py [FOLDER]

The same version of `tokenizers` gives the same bytes each time. The default folder is the shipped one.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SHIPPED = Path(__file__).parents[1] / "src" / "smolact" / "backbones" / "assets" / "tokenizer"
VOCAB_SIZE = 1024

# In the order of their ids: the VLM presets name <image> (4) and the padding token <|im_end|> (2) by number.
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]

# The material of the corpus; commas divide.
COLOURS = "red,green,blue,yellow,orange,purple,pink,white,black,grey,brown,cyan"
THINGS = (
    "block,cube,ball,cup,mug,bowl,plate,box,bottle,can,pen,marker,brick,lego,spoon,fork,knife,sponge,towel,cloth,toy,"
    "cylinder,triangle,star,ring,disc,peg,banana,apple,lemon,tape,screwdriver,hammer,tool,stapler,basket,tray,bin,drawer,"
    "lid,button,lever,handle,door,switch,nut,bolt,battery,cable,paper,book,egg,bread,carrot,pot,pan,kettle"
)
SIZES = "small,big,large,tiny,little,long,short,round,square,wooden,metal,plastic,soft,empty,full"
PLACES = (
    "the table,the bin,the box,the tray,the plate,the bowl,the shelf,the drawer,the basket,the corner,the center,"
    "the middle,the left side,the right side,the top,the bottom,the edge,the target,the goal,the zone,the line,"
    "the upper left corner,the lower right corner,the north side,the south side,the east side,the west side,"
    "the kitchen counter,the sink,the stove,the microwave,the cabinet,the stack,the hand,the gripper"
)
RELATIONS = (
    "on,onto,on top of,in,into,inside,next to,beside,near,behind,in front of,under,above,below,to,towards,"
    "to the left of,to the right of,between,against,over,across,away from,out of,off"
)
NUMBERS = "one,two,three,four,five,six,seven,eight,nine,ten,first,second,third,last,next,all,both"
# {a}, {b}: objects; {r} {p}: a relation and a place; {n} {c} {t}: number, colour, thing.
PHRASES = """
Pick up {a}. Grasp {a}. Grab {a}. Take {a}. Lift {a}. Hold {a} and lift it. Get {a}. Fetch {a} now.
Put {a} {r} {p}. Place {a} {r} {p}. Set {a} down {r} {p}. Drop {a} {r} {p}. Move {a} {r} {p}. Bring {a} {r} {p}.
Push {a} {r} {p}. Slide {a} {r} {p}. Pull {a} {r} {p}. Shove {a} gently {r} {p}. Nudge {a} {r} {p} until it stops.
Reach {a}. Touch {a}. Go to {a}. Move to {a}. Point at {a}. Move the gripper to {a}. Reach for {a} with the arm.
Pick up {a} and place it {r} {p}. Grasp {a} and put it {r} {p}. Take {a}, then drop it {r} {p}.
Stack {a} on {b}. Put {a} on top of {b}. Place {a} next to {b}. Insert {a} into {b}. Align {a} with {b}.
Open {a}. Close {a}. Press {a}. Turn {a}. Rotate {a} clockwise. Pour from {a} into {b}. Wipe {p} with {a}.
Sort {n} {t}s by color. Put {n} {t}s {r} {p}. Count the {t}s. Push {n} {c} {t}s {r} {p}. Clear {n} {t}s from {p}.
"""
SENTENCES = """
Move the robot arm back to its home position. Open the gripper. Close the gripper. Wait until the object is released.
Stop when the end effector touches the table. Rotate the wrist by 90 degrees. Raise the arm 10 centimeters. Fold the towel.
What is in the image? Describe the scene. Where is the red cube? There is a robot on the table with two cameras.
The task is finished when everything is in the box. Carefully insert the peg into the hole. Hand it over to the person.
User: What should the robot do? Assistant: The robot should pick up the object that is nearest to it. Yes. No.
Use your left hand, then your right hand. Follow the line slowly and do not hit the obstacle. Assemble the parts together.
If the drawer is closed, open it before you put the object inside; then close it again. Turn on the light. Turn it off.
Which one is bigger? Both of them have the same size, shape and color. Please try again from the start, but faster.
Task: State: Action: Instruction: Goal: Step 1, 2, 3: locate, approach, grasp, lift, transport, align, release, retreat.
"""


def corpus() -> Iterator[str]:
    """Instructions in which every word of a list meets those of the others, as written and as people type them."""
    phrases = [phrase.strip() + "." for phrase in PHRASES.replace("\n", " ").split(".") if phrase.strip()]
    # Lists of different lengths, walked side by side, meet in ever new combinations: no random numbers are needed.
    colours, things, sizes, places, relations, numbers = (
        itertools.cycle(words.split(",")) for words in (COLOURS, THINGS, SIZES, PLACES, RELATIONS, NUMBERS)
    )
    for turn in range(120):
        for index, phrase in enumerate(phrases):
            colour, thing, other = next(colours), next(things), next(things)
            a = f"the {next(sizes)} {colour} {thing}" if (turn + index) % 3 == 0 else f"the {colour} {thing}"
            text = phrase.format(
                a=a,
                b=f"the {next(colours)} {other}",
                c=colour,
                t=thing,
                n=next(numbers),
                r=next(relations),
                p=next(places),
            )
            yield text + "\n"
            if (turn + index) % 4 == 0:
                yield text.lower().rstrip(".") + "\n"
    for _ in range(20):
        yield from (line + "\n" for line in SENTENCES.strip().splitlines())
        yield from (f"{number} " for number in range(256))


def train() -> Tokenizer:
    """The tokenizer, with exactly `VOCAB_SIZE` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(
            f"The corpus gives {tokenizer.get_vocab_size()} tokens only, {VOCAB_SIZE} are wanted: widen it."
        )
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """The tokenizer as a folder that smolact, tokenizers and transformers' AutoProcessor open."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name, value in (
        ("tokenizer_config.json", TOKENIZER_CONFIG),
        ("processor_config.json", PROCESSOR_CONFIG),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


TOKENIZER_CONFIG = {
    "backend": "tokenizers",
    "bos_token": "<|im_start|>",
    "end_of_utterance_token": "<end_of_utterance>",
    "eos_token": "<end_of_utterance>",
    "extra_special_tokens": [],
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
    "model_max_length": 8192,
    "pad_token": "<|im_end|>",
    "processor_class": "SmolVLMProcessor",
    "tokenizer_class": "TokenizersBackend",
    "unk_token": "<|endoftext|>",
}
_PIXELS = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 1,
    "rescale_factor": 1 / 255,
}
PROCESSOR_CONFIG = {
    "image_processor": {
        **_PIXELS,
        "do_image_splitting": True,
        "image_processor_type": "SmolVLMImageProcessor",
        "max_image_size": {"longest_edge": 128},
        "size": {"longest_edge": 256},
    },
    "image_seq_len": 16,
    "processor_class": "SmolVLMProcessor",
    "video_processor": {
        **_PIXELS,
        "do_sample_frames": False,
        "max_image_size": {"longest_edge": 128},
        "return_metadata": False,
        "size": {"longest_edge": 256},
        "video_processor_type": "SmolVLMVideoProcessor",
    },
}
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


if __name__ == "__main__":
    write(train(), Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED)
