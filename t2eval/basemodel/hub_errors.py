"""What the Hub or the network said, in one sentence that a user can act on: one translation for loading and for looking beforehand."""

from __future__ import annotations

from typing import Literal

Answer = Literal["gated", "revision", "absent", "outage", "refused"]


def answer_of(error: BaseException) -> Answer | None:
    """What an exception of huggingface_hub, of the HTTP library below it, or of what called them, says about a repository.

    Returns:
        `gated`; `revision`: it lacks the revision; `absent`: there is none, or it is private; `outage`: the Hub cannot be reached, or
        answers that it is out of order or overrun (5xx, 429); `refused`: another answer of the Hub; None: it says nothing about the Hub.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain = list(_chain(error))
    for kinds, answer in (
        ((GatedRepoError,), "gated"),
        ((RevisionNotFoundError,), "revision"),
        ((RepositoryNotFoundError, HFValidationError), "absent"),
        ((OfflineModeIsEnabled,), "outage"),
    ):
        if any(isinstance(link, kinds) for link in chain):
            return answer  # type: ignore[return-value]
    if (said := next((link for link in chain if isinstance(link, HfHubHTTPError)), None)) is not None:
        return "outage" if _status(said) in (None, 408, 429) or (_status(said) or 0) >= 500 else "refused"
    return "outage" if any(isinstance(link, (ConnectionError, TimeoutError)) or _of_http_library(link) for link in chain) else None


def model_problem(model: str, revision: str | None, error: BaseException) -> str | None:
    """Why a model cannot be had from the Hub, with the remedy; None where the exception says nothing about the Hub."""
    sentences: dict[Answer, str] = {
        "gated": f"{model} is gated: ask for access at https://huggingface.co/{model}, then run `hf auth login`.",
        "revision": f"{model} has no revision {revision!r}. Look at https://huggingface.co/{model}/tree/main for those it has.",
        "absent": f"There is no model {model!r}, neither a folder nor on the Hub. Check the name; private models need `hf auth login`.",
        "refused": f"The Hub does not give the model {model}: {one_line(error)}",
        "outage": (
            f"{model} is neither a folder nor in the local cache, and the Hub cannot be reached ({one_line(error)}). Check the name and "
            "the network (is HF_HUB_OFFLINE set?), or use a local folder, or the embedded base model (no name)."
        ),
    }
    answer = answer_of(error)
    return None if answer is None else sentences[answer]


def data_problem(name: str, error: BaseException) -> str:
    """Why a data set cannot be had from the Hub, in a few words."""
    phrases: dict[Answer | None, str] = {
        "gated": f"gated: ask for access at https://huggingface.co/datasets/{name}, then run `hf auth login`",
        "absent": "there is no such data set on the hub; private ones need `hf auth login`",
        "refused": f"the hub does not give it: {one_line(error)}",
    }
    return phrases.get(answer_of(error), f"not in the cache, and the hub cannot be reached ({one_line(error)})")


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type's name."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _of_http_library(error: BaseException) -> bool:
    """The HTTP library's own errors, whichever it is in this release of huggingface_hub."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
