import pytest

from t2eval.stats.corrections import holm


def test_holm_on_a_worked_example():
    # 0.01*4, 0.02*3, max(0.06, 0.03*2), 0.2*1
    assert holm([0.02, 0.2, 0.01, 0.03]) == pytest.approx([0.06, 0.2, 0.04, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
