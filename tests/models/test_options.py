"""model_args: a value that cannot be used is refused with what it must be, in words that say how it is given."""

from __future__ import annotations

from typing import Any

import pytest

from t2eval.errors import UsageError
from t2eval.models import options


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (options.FewshotOptions, {"population": 1}, "model_args: population=1: it must be at least 2."),
        (options.FewshotOptions, {"shots": "some"}, "model_args: shots='some': it must be a whole number."),
        (options.FewshotOptions, {"normalize": "maybe"}, "model_args: normalize='maybe': it must be true or false."),
        (options.PromptOptions, {"dispatch_tokens": 1.5}, "model_args: dispatch_tokens=1.5: it must be a whole number."),
        (options.ExpertOptions, {"alphas": "0.5+x"}, "model_args: alphas='x': it must be a number."),
    ],
)
def test_what_a_value_must_be_is_said(kind: type[options.Options], given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        options.split_arguments(kind, given, [])
    assert str(caught.value) == said
