"""Tests of code generation need TVM, which is an extra."""

import pytest

pytest.importorskip("tvm", reason="needs the tvm extra: pip install 'planish[tvm]'")
