"""Trade-offs between cost and error over several layers are the best that there are."""

import itertools

import numpy as np
import pytest

from planish.passes.allocation import spread, tradeoffs


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_beats_a_tradeoff(seed):
    rng = np.random.default_rng(seed)
    table = [[(float(c), float(e), (i, j)) for j, (c, e) in enumerate(rng.random((4, 2)))] for i in range(4)]
    every = [(sum(o[0] for o in chosen), sum(o[1] for o in chosen)) for chosen in itertools.product(*table)]
    found = tradeoffs(table)
    costs = [(sum(table[i][j][0] for i, j in choice), sum(table[i][j][1] for i, j in choice)) for choice in found]
    assert costs == sorted(costs)
    for cost, error in costs:
        assert not any(c < cost - 1e-12 and e < error - 1e-12 for c, e in every)
    assert costs[0][0] == pytest.approx(min(c for c, _ in every))
    assert costs[-1][1] == pytest.approx(min(e for _, e in every))
    for share in np.linspace(0, 1, 7)[1:-1]:
        best = min(every, key=lambda point: share * point[0] + (1 - share) * point[1])
        assert any(np.allclose(best, point) for point in costs)


def test_places_are_spread_evenly():
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(2, 12) == [0, 1]
