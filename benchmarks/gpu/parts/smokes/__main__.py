"""What the sanitizer runs: `python -m benchmarks.gpu.parts.smokes`."""

import sys

from . import main

sys.exit(main())
