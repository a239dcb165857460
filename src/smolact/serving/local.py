"""`LocalPolicy` under its earlier name; it is in `smolact.runtime.local`."""

from smolact.runtime.local import LocalPolicy

__all__ = ["LocalPolicy"]
