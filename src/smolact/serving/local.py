"""`LocalPolicy` at its former path; it is in `smolact.runtime.local`."""

from smolact.runtime.local import LocalPolicy

__all__ = ["LocalPolicy"]
