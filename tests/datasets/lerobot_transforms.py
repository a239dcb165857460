"""Run by an interpreter that has LeRobot, and so torchvision: what it makes of the images in a safetensors file.

The file's keys are IMAGE; the results' IMAGE/FUNCTION/VALUE, as in `test_transforms.cases`.
"""

import json
import sys

from lerobot.transforms import ImageTransformsConfig
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2 import functional


def main(images: str, cases: str, results: str) -> None:
    found = {}
    for name, image in load_file(images).items():
        for function, value in json.loads(cases):
            if function == "affine":
                made = functional.affine(image, value[0], value[1:], 1.0, [0.0, 0.0], fill=[0.0])
            else:
                made = getattr(functional, f"adjust_{function}")(image, value)
            found[f"{name}/{function}/{value}"] = made.contiguous()
    save_file(found, results)
    tfs = {
        name: {"weight": tf.weight, "type": tf.type, "kwargs": tf.kwargs}
        for name, tf in ImageTransformsConfig().tfs.items()
    }
    print(json.dumps(tfs))


if __name__ == "__main__":
    main(*sys.argv[1:])
