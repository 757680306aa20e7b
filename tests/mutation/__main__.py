"""python -m tests.mutation, from the root of the checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mutation.run import main

sys.exit(main())
