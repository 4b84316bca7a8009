import pytest

from t2eval.errors import UsageError
from t2eval.store.guard import changed_setting, refuse_other_settings


def test_the_first_setting_that_may_not_change_is_named():
    before, now = {"lr": 0.1, "steps": 10, "seed": 0}, {"lr": 0.1, "steps": 20, "seed": 1}
    assert changed_setting(before, now) == "seed"
    assert changed_setting(before, now, {"seed"}) == "steps"
    assert changed_setting(before, now, {"seed", "steps"}) is None
    assert changed_setting({"a": None}, {}) is None


def test_a_folder_of_other_settings_is_refused_with_both_values():
    refuse_other_settings("runs/x", {"lr": 0.1}, {"lr": 0.1}, remedy="")
    with pytest.raises(UsageError) as caught:
        refuse_other_settings("runs/x", {"lr": 0.1}, {"lr": 0.2}, remedy="Choose another --output.")
    assert str(caught.value) == "runs/x was begun with other settings: lr was 0.1 there, and is 0.2 now. Choose another --output."
    with pytest.raises(UsageError, match="tempo was not set there, and is 3 now"):
        refuse_other_settings("runs/x", {}, {"tempo": 3}, remedy="")
