"""`python -m dlm_serve`, the same as `dlm-serve`."""

from __future__ import annotations

import sys

from dlm_serve.cli import main

sys.exit(main())
