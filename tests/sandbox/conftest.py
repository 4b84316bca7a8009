"""What the tests of the sandbox share."""

from __future__ import annotations

import pytest

from t2eval.sandbox import available, isolation


@pytest.fixture(params=["bubblewrap", "landlock"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each isolation in turn. What is installed must hold: only its absence from the machine is a reason to skip."""
    monkeypatch.setenv(isolation.VARIABLE, request.param)
    state = available()
    if state.kind is None:
        absent = isolation.missing(request.param) or ("this kernel has no Landlock" if "has no Landlock" in state.reason else None)
        if absent is None:
            pytest.fail(f"{request.param} is here and does not hold: {state.reason}")
        pytest.skip(absent)
    return str(request.param)
