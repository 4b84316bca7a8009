import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from t2eval.stats.corrections import holm


def test_holm_on_a_worked_example():
    # 0.01*4, 0.02*3, max(0.06, 0.03*2), 0.2*1
    assert holm([0.02, 0.2, 0.01, 0.03]) == pytest.approx([0.06, 0.2, 0.04, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("ties", [False, True])
def test_holm_is_that_of_statsmodels(ties):
    for seed in (0, 1, 5, 19):  # statsmodels takes a second a call in a process that holds much: it collects garbage at each
        values = np.random.default_rng(seed).beta(0.3, 1.0, size=1 + seed * 7)
        values = values.round(1) if ties else values
        assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])
