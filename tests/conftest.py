"""Makes tests/ importable: `from rewriting import check_rewrite`, `from zoo.inputs import ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
