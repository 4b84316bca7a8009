from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch

from t2eval.errors import T2Error
from t2eval.store.digests import file_digest, folder_digest, object_digest, tensors_digest


def test_a_files_digest_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"abc" * 10**6).hexdigest()
    with pytest.raises(T2Error, match="No such file"):
        file_digest(tmp_path / "y")


def test_a_folders_digest_changes_with_each_name_and_byte(tmp_path):
    (tmp_path / "f" / "g").mkdir(parents=True)
    (tmp_path / "f" / "a").write_text("1")
    (tmp_path / "f" / "g" / "b").write_text("2")
    seen = {folder_digest(tmp_path / "f")}
    (tmp_path / "f" / "g" / "b").write_text("3")
    seen.add(folder_digest(tmp_path / "f"))
    (tmp_path / "f" / "g" / "b").rename(tmp_path / "f" / "b")
    seen.add(folder_digest(tmp_path / "f"))
    assert len(seen) == 3
    with pytest.raises(T2Error, match="no folder"):
        folder_digest(tmp_path / "missing")


def test_a_values_digest_is_the_same_in_every_process_whatever_it_holds():
    """A function's text has its address in it."""
    script = (
        "import shutil\nfrom t2eval.store.digests import object_digest\n"
        "print(object_digest({'b': shutil.copy, 'a': {'x', 'y', 'z'}, 'c': b'1'}))"
    )
    found = {subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(found) == 1
    assert object_digest({"a": 1, "b": 2}) == object_digest({"b": 2, "a": 1}) != object_digest({"a": 1, "b": 3})


def test_a_tensors_digest_counts_name_dtype_shape_and_bits():
    tensor = torch.arange(6, dtype=torch.float32)
    variants = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.double()},
        {"a": tensor.view(2, 3)},
        {"a": tensor + 1},
        {"a": tensor.bfloat16()},
        {},
    ]
    variants.append({"a": tensor.view(2, 3).T})
    assert len({tensors_digest(variant) for variant in variants}) == len(variants)
    assert tensors_digest({"a": tensor[::2]}) == tensors_digest({"a": tensor[::2].clone()})
    assert tensors_digest({"s": torch.tensor(1.0), "e": torch.empty(0)})
