"""Expert: one z for each adapted matrix, trained for one skill, and the card that says what it is and which base model it fits.

An expert is a directory: `expert.safetensors` (a float32 tensor `z/<module path>` a matrix), `expert.json` (the card) and `README.md`
(a model card for the Hub). Nothing is ever unpickled without `weights_only`.

Deviation from the reference implementation: mixing mixes trained z, as the paper's text has it; its older checkpoints mix raw p.
"""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from t2eval import __version__
from t2eval.basemodel.load import base_identity
from t2eval.errors import T2Error, UsageError, unknown
from t2eval.expert.card import (
    CARD,
    FORMAT_VERSION,
    README,
    TENSORS,
    BaseModelCard,
    ExpertCard,
    ModuleCard,
    Score,
    TrainingRecord,
    is_plain,
    read_card,
    read_part,
)
from t2eval.expert.location import source_of
from t2eval.expert.model_card import model_card
from t2eval.store.files import DiskError, write_bytes
from t2eval.store.folders import staged_folder
from t2eval.store.tensors import parse_tensors
from t2eval.svf.adapted import Adapted
from t2eval.svf.fingerprint import fingerprint_difference
from t2eval.svf.matrices import all_matrices, plain
from t2eval.svf.scales import mix_scales
from t2eval.svf.selection import remapped_paths

__all__ = [
    "FORMAT_VERSION",
    "Expert",
    "ExpertCard",
    "Score",
    "TrainingRecord",
    "mix",
]

_ALLOW = "allow_basis_mismatch=true (in lm_eval's --model_args, or to this function)"
_SAME, _TOLERATED = 1e-3, 5e-2  # relative difference of basis fingerprints: fine below the first, an error above the second


@dataclass(frozen=True, eq=False)
class Expert:
    """z vectors and their card.

    Attributes:
        z: (r,) float32 on the CPU, by matrix path.
        card: what `expert.json` holds.
        is_remapped: whether `remapped` gave its matrices other paths than its file has.
        source: the place on the hub that it was loaded from, with its commit (`hf://owner/name@commit/folder`); None for any other folder.
        folder: the directory that it was loaded from; None for one that was made here.
    """

    z: dict[str, Tensor]
    card: ExpertCard
    _content: bytes = field(repr=False)
    is_remapped: bool = False
    source: str | None = None
    folder: Path | None = None

    def __repr__(self) -> str:
        return f"Expert(name={self.name!r}, label={self.label!r}, matrices={len(self.z)}, sha256={self.sha256[:12]!r})"

    @property
    def name(self) -> str:
        """The expert's name, unique in a library."""
        return self.card.name

    @property
    def label(self) -> str:
        """The skill's label, which dispatch chooses among."""
        return self.card.label

    @property
    def description(self) -> str:
        """One line about the skill, for dispatch prompts."""
        return self.card.description

    @property
    def sha256(self) -> str:
        """The hash of `expert.safetensors`."""
        return hashlib.sha256(self._content).hexdigest()

    def renamed(self, name: str, label: str | None = None) -> Expert:
        """The same z under another name, and under another label where one is given.

        Raises:
            UsageError: a name that is not a plain file name.
        """
        check_name(name)
        card = self.card.model_copy(update={"name": name, "label": self.label if label is None else label})
        return replace(self, card=card)

    def with_parameterisation(self, parameterisation: Literal["direct", "sigmoid-renorm"]) -> Expert:
        """The same z, said to come from another form of raw parameters."""
        return replace(self, card=self.card.model_copy(update={"parameterisation": parameterisation}))

    @classmethod
    def from_adapted(
        cls,
        adapted: Adapted,
        z: Mapping[str, Tensor],
        *,
        name: str,
        label: str,
        description: str,
        base_id: str,
        revision: str | None = None,
        training: TrainingRecord | None = None,
    ) -> Expert:
        """An expert of the given z, with the fingerprint of this model's bases.

        Args:
            adapted: the model that z was trained on.
            z: (r,) by matrix path, all of them adapted matrices.
            name: unique in a library; a plain file name.
            label: the skill's label.
            description: one line.
            base_id: the base model's Hub name or path.
            revision: its revision, where known.
            training: the training record.

        Raises:
            T2Error: z of an unknown matrix, of a wrong length, or not finite; a name that is not a plain file name.
        """
        check_name(name)
        tensors = {path: plain(value, f"z of {path}").detach().to("cpu", torch.float32).contiguous().clone() for path, value in z.items()}
        if not tensors:
            raise UsageError(f"Expert {name!r} has no z: give at least one matrix.")
        for path, value in tensors.items():
            if path not in adapted.bases:
                raise unknown("adapted matrix", path, adapted.paths)
            check_tensor(f"Expert {name!r}", path, value, adapted.bases[path].rank)
        card = ExpertCard(
            name=name,
            label=label,
            description=description,
            base_model=BaseModelCard(id=base_id, revision=revision, architecture=_architecture(adapted.model)),
            modules={p: ModuleCard(shape=adapted.bases[p].shape, side=adapted.bases[p].side, rank=adapted.bases[p].rank) for p in tensors},
            parameterisation=adapted.parameterisation,  # type: ignore[arg-type]
            basis_fingerprint=adapted.fingerprint(tensors),
            training=training,
            versions=_versions(),
        )
        return cls(tensors, card, _serialise(tensors))

    def save(self, path: str | Path) -> Path:
        """Write the expert to a directory, which may hold other files already. Leaves the old expert or the new one, never half of one.

        Raises:
            T2Error: the directory cannot be written.
        """
        folder = Path(path)
        card = self.card.model_dump_json(indent=2) + "\n"
        contents = {TENSORS: self._content, README: model_card(self.card).encode(), CARD: card.encode()}
        try:
            if folder.is_dir() and not (folder / CARD).exists():  # without its card, which comes last, a folder is no expert
                for name, content in contents.items():
                    write_bytes(folder / name, content)
                return folder
            with staged_folder(folder, keep=True) as staging:
                for name, content in contents.items():
                    write_bytes(staging / name, content)
        except DiskError as error:
            raise DiskError(f"Cannot save expert {self.name!r} to {folder}: {error}") from error
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Expert:
        """Read and check an expert directory.

        Raises:
            T2Error: no such directory (with near matches), a missing or damaged file, a newer format, tensors that do not fit the card.
        """
        folder = Path(path)
        card = read_card(folder)
        content = read_part(folder, TENSORS)
        stored = parse_tensors(content, folder / TENSORS, what="expert's tensors", remedy="Copy the expert again.")
        foreign = sorted(name for name in stored if not name.startswith("z/"))
        tensors = {name.removeprefix("z/"): tensor for name, tensor in stored.items() if name.startswith("z/")}
        if missing := sorted(set(card.modules) - set(tensors)):
            raise T2Error(f"{folder / TENSORS} lacks the tensor z/{missing[0]}, which {CARD} lists ({len(missing)} missing in all).")
        if extra := foreign + sorted(f"z/{name}" for name in set(tensors) - set(card.modules)):
            raise T2Error(f"{folder / TENSORS} holds the tensor {extra[0]}, which {CARD} does not list ({len(extra)} extra in all).")
        for name, tensor in tensors.items():
            check_tensor(str(folder / TENSORS), name, tensor, card.modules[name].rank)
        source = source_of(folder)
        z = {name: tensors[name] for name in card.modules}
        return cls(z, card, content, source=None if source is None else str(source), folder=folder)

    def remapped(self, model: Any) -> Expert:
        """This expert with the module paths of a model that contains its base model, or that its base model contains.

        A language model's experts load into a vision-language model that contains it, and the other way. Only paths change, in memory:
        whether the weights are the same is for `check` to say, by the fingerprint of the singular bases.
        """
        paths = remapped_paths(model, self.z)
        if not paths:
            return self
        card = self.card.model_copy(
            update={
                "modules": {paths[path]: module for path, module in self.card.modules.items()},
                "basis_fingerprint": {paths[path]: numbers for path, numbers in self.card.basis_fingerprint.items()},
            }
        )
        return replace(self, z={paths[path]: value for path, value in self.z.items()}, card=card, is_remapped=True)

    def check(self, adapted: Adapted, allow_basis_mismatch: bool = False) -> None:
        """Whether this expert fits an adapted model; touches no weight. Adapted matrices that the expert lacks keep the base weights.

        Args:
            adapted: the model.
            allow_basis_mismatch: warn instead of failing where the architecture's name or the singular bases differ.

        Raises:
            T2Error: another architecture, a matrix that the model lacks, another shape or side, another singular basis.
        """
        architecture, expected = _architecture(adapted.model), self.card.base_model.architecture
        if architecture != expected and not self.is_remapped:
            problem = f"Expert {self.name!r} was trained on {self.card.base_model.id} ({expected}), but this model is {architecture}."
            if not allow_basis_mismatch:
                raise T2Error(f"{problem} Load the expert's base model, or give {_ALLOW} to try it all the same.")
            warnings.warn(problem, stacklevel=2)
        for path, module in self.card.modules.items():
            basis = adapted.bases.get(path)
            if basis is None:
                raise T2Error(self._missing_matrix(adapted, path))
            if basis.shape != module.shape or basis.side != module.side:
                raise T2Error(
                    f"Expert {self.name!r} was trained on {self.card.base_model.id}, and this is {model_name(adapted.model)}: "
                    f"matrix {path} has shape {module.shape} (side {module.side}) in the expert, and {basis.shape} "
                    f"(side {basis.side}) in this model."
                )
        self._check_bases(adapted, allow_basis_mismatch)

    def _missing_matrix(self, adapted: Adapted, path: str) -> str:
        if path in all_matrices(adapted.model):
            return f"Expert {self.name!r} scales {path}, which is not adapted here: attach with modules='all', layers='all'."
        near = difflib.get_close_matches(path, adapted.paths, n=2)
        hint = f" Near it: {', '.join(near)}." if near else ""
        return (
            f"Expert {self.name!r} was trained on {self.card.base_model.id}, and this is {model_name(adapted.model)}: it scales "
            f"{path}, which this model does not have.{hint}"
        )

    def _check_bases(self, adapted: Adapted, allow: bool) -> None:
        found = adapted.fingerprint(self.z)
        differences = {path: fingerprint_difference(self.card.basis_fingerprint[path], found[path]) for path in self.z}
        suspect = {path: d for path, d in differences.items() if not d <= _SAME}
        if not suspect:
            return
        path = max(suspect, key=suspect.__getitem__)
        more = f" ({len(suspect) - 1} more matrices differ too)" if len(suspect) > 1 else ""
        problem = (
            f"Expert {self.name!r}: the singular basis of {path} differs from the one it was trained in by {suspect[path]:.1%}{more}. "
            f"Is this {self.card.base_model.id} in another revision, dtype or quantisation, or decomposed by another solver?"
        )
        if suspect[path] > _TOLERATED and not allow:
            raise T2Error(f"{problem} Load the weights that the expert was trained on, or give {_ALLOW} to use it all the same.")
        warnings.warn(problem, stacklevel=3)


def mix(
    experts: Sequence[Expert], alphas: Sequence[float] | Mapping[str, Sequence[float]], form: Literal["paper", "offset"] = "paper"
) -> dict[str, Tensor]:
    """z' = Σ α_k z_k, or 1 + Σ α_k (z_k - 1) with `offset`.

    Args:
        experts: K experts of one base model.
        alphas: K coefficients, or K for each matrix path.
        form: `paper` or `offset` (a labelled deviation).

    Returns:
        (r,) float32 by matrix path. A matrix that an expert does not scale counts as ones there.

    Raises:
        T2Error: coefficients or z that do not fit one another.
    """
    return mix_scales([expert.z for expert in experts], alphas, form)


def check_name(name: str) -> None:
    """Refuse a name that is not a plain file name.

    Raises:
        UsageError: it is not.
    """
    if not is_plain(name):
        raise UsageError(f"An expert's name is a plain file name (letters, digits, '.', '_', '-'), not {name!r}.")


def check_tensor(where: str, path: str, tensor: Tensor, rank: int) -> None:
    """Refuse what is not z of a matrix: (rank,) finite float32 numbers in memory.

    Raises:
        T2Error: it is something else.
    """
    if tensor.dtype != torch.float32:
        raise T2Error(f"{where}: z of {path} is {tensor.dtype}, not torch.float32.")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        raise T2Error(f"{where}: z of {path} is no plain tensor ({'without values' if tensor.is_meta else tensor.layout}).")
    if tuple(tensor.shape) != (rank,):
        raise T2Error(f"{where}: z of {path} has shape {tuple(tensor.shape)}, not ({rank},).")
    if not bool(torch.isfinite(tensor).all()):
        raise T2Error(f"{where}: z of {path} holds values that are not finite.")


def model_name(model: Any) -> str:
    """What a loaded model is called in a message: its id, and its class."""
    identity = base_identity(model) if hasattr(model, "config") else {"id": "a model without a configuration"}
    return f"{identity['id']} ({type(model).__name__})"


def _architecture(model: Any) -> str:
    return type(model).__name__


def _serialise(z: Mapping[str, Tensor]) -> bytes:
    return save_tensors({f"z/{path}": z[path] for path in sorted(z)})


def _versions() -> dict[str, str]:
    found = {"t2eval": __version__}
    for package in ("torch", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
