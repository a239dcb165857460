"""The former home of `train`."""

from smolact.training.train import train

__all__ = ["train"]
