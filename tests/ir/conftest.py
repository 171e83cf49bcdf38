"""Makes tests/ir/ importable: `from check_op import check_op`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
