"""`python -m smolact` is `smolact`."""

from __future__ import annotations

import sys

from smolact.cli.main import main

sys.exit(main())
