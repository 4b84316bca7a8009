"""The wheel: what it holds, what it declares, and that lm-eval finds it in a venv of its own."""

from __future__ import annotations

import configparser
import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from t2eval.models import plugin


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a venv that holds the wheel, and sees this environment's other packages (but not its .pth files)."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "zz_shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    interpreter = venv / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-deps", "--no-index"]
    # --ignore-installed: the shared packages may hold an editable t2eval, which is not this venv's to remove.
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True, capture_output=True, text=True)
    return interpreter


def run(python: Path, *arguments: str, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run([str(python), *arguments], cwd=folder, env=environment, check=check, capture_output=True, text=True)


def test_wheel_holds_each_file_once(wheel: Path, root: Path) -> None:
    names = Counter(zipfile.ZipFile(wheel).namelist())
    assert max(names.values()) == 1
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"t2eval", "t2eval_bridge.py", "t2eval_bridge.pth"}
    assert not any("t2eval/bridge" in name or "__pycache__" in name for name in names)
    for folder in ("tasks", "experts", "configs"):
        expected = subprocess.run(["git", "ls-files", folder], cwd=root, check=True, capture_output=True, text=True).stdout.split()
        left_out = [name for name in expected if name.startswith("experts/smollm2/")]  # the real model is no part of the wheel either
        missing = [name for name in expected if f"t2eval/{name}" not in names]
        assert missing == left_out


def test_wheel_declares_the_commands_and_the_plugin(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (declared,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    text = archive.read(declared).decode()
    groups = configparser.ConfigParser(delimiters=["="])
    groups.read_string(text)
    assert dict(groups["console_scripts"]) == {"t2": "t2eval.cli:main"}
    assert dict(groups["lm_eval.models"]) == plugin.MODELS
    assert dict(groups["lm_eval.tasks"]) == {"t2eval": "t2eval.tasks"}
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_index_shows_links_that_lead_somewhere(wheel: Path, root: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    described = email.message_from_string(archive.read(name).decode())
    urls = dict(line.split(", ", 1) for line in described.get_all("Project-URL") or [])
    assert {"Repository", "Documentation", "Changelog", "Issues", "Paper"} <= set(urls)
    text = described.get_payload()
    links = re.findall(r"\]\(([^)]+)\)", text if isinstance(text, str) else "")
    ours = f"{urls['Repository']}/blob/main/"
    assert sum(link.startswith(ours) for link in links) > 10
    assert not [link for link in links if not link.startswith("https://")]
    assert not [link for link in links if link.startswith(ours) and not (root / link.removeprefix(ours).partition("#")[0]).exists()]


_REAL = """
import json, sys
from pathlib import Path
from lm_eval.api.registry import model_registry
import lm_eval.models
from lm_eval.tasks import manager
import t2eval

scans = []
manager.TaskIndex.build = staticmethod(lambda paths, **_: scans.append([str(path) for path in paths]) or {})
mine = str(Path(t2eval.__file__).parent / "tasks")
plain = manager.TaskManager()
manager.TaskManager(include_path="/elsewhere")
manager.TaskManager(include_path=[mine, "/elsewhere"])
manager.TaskManager(include_path="/elsewhere", include_defaults=False)
try:
    model_registry.get("t2-nonsense")
except KeyError as error:
    message = str(error)
print(json.dumps({
    "home": t2eval.__file__, "mine": mine, "scans": scans, "include_path": plain.include_path, "message": message,
    "missing": [name for name in lm_eval.models.MODEL_MAPPING if name not in model_registry],
    "plugin": {name: model_registry._objs.get(name) for name in ("t2-expert", "t2-prompt", "t2-cls", "t2-fewshot")},
    "heavy": [name for name in ("transformers", "t2eval.models") if name in sys.modules],
}))
"""


def test_unmodified_lm_eval_finds_models_and_tasks(python: Path, tmp_path: Path) -> None:
    found = json.loads(run(python, "-c", _REAL, folder=tmp_path).stdout.splitlines()[-1])
    assert found["home"].startswith(str(python.parent.parent))
    assert found["plugin"] == {
        "t2-expert": "t2eval.models.text:T2Expert",
        "t2-prompt": "t2eval.models.text:T2Prompt",
        "t2-cls": "t2eval.models.text:T2Cls",
        "t2-fewshot": "t2eval.models.text:T2Fewshot",
    }
    assert found["missing"] == []
    assert "t2eval.models" not in found["heavy"]
    plain, other, named, alone = found["scans"]
    builtin = plain[0]
    assert builtin.endswith("lm_eval/tasks")
    assert plain == [builtin, found["mine"]]
    assert other == [builtin, found["mine"], "/elsewhere"]
    assert named == [builtin, found["mine"], "/elsewhere"]
    assert alone == ["/elsewhere"]
    assert found["include_path"] is None
    assert "Unknown model 't2-nonsense'" in found["message"]
    assert "t2-expert" in found["message"]


def test_the_bridge_costs_one_small_module(python: Path, tmp_path: Path) -> None:
    show = "import sys; print(*sorted(sys.modules))"
    with_bridge = set(run(python, "-c", show, folder=tmp_path).stdout.split())
    without = set(run(python, "-S", "-c", show, folder=tmp_path).stdout.split()) | {"site", "sitecustomize", "usercustomize"}
    ours = {name for name in with_bridge - without if "t2eval" in name}
    assert ours == {"t2eval_bridge"}
    # Nothing that reads metadata or lm-eval itself comes with it.
    assert not with_bridge & {"importlib.metadata", "lm_eval", "inspect", "t2eval"}


def test_files_of_the_wheel_are_found(python: Path, tmp_path: Path) -> None:
    show = "from t2eval import paths; print(paths.tasks_dir().is_dir(), paths.experts_dir())"
    there, experts = run(python, "-c", show, folder=tmp_path).stdout.split()
    assert there == "True"
    assert str(python.parent.parent) in experts


def test_a_shipped_benchmark_is_found_by_name_and_by_its_path_in_the_repository(python: Path, tmp_path: Path) -> None:
    show = "from t2eval.bench.plan import find_file; print(find_file('paper-llama3-8b'), find_file('configs/paper-llama3-8b.yaml'))"
    first, second = run(python, "-c", show, folder=tmp_path).stdout.split()
    assert first == second
    assert str(python.parent.parent) in first


def test_t2_lm_eval_works_where_pth_files_are_not_read(python: Path, tmp_path: Path) -> None:
    (site,) = python.parent.parent.glob("lib/python*/site-packages")
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{sysconfig.get_paths()['purelib']}"}
    code = """
import sys
assert not any(type(finder).__name__ == "Finder" for finder in sys.meta_path)
from lm_eval import __main__ as harness
import lm_eval._cli as cli

def execute(self, args):
    from lm_eval.api.registry import model_registry
    import lm_eval.models
    print("seen", sys.argv[1:], "t2-cls" in model_registry, "hf" in model_registry)

cli.HarnessCLI.execute = execute
from t2eval.cli import main
main(["lm-eval", "--model", "t2-cls", "--tasks", "embedded_math_unseen", "--limit", "2"])
"""
    done = subprocess.run([str(python), "-S", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "seen ['run', '--model', 't2-cls', '--tasks', 'embedded_math_unseen', '--limit', '2'] True True" in done.stdout, done.stderr


def test_editable_install_points_to_the_checkout_and_brings_the_bridge(root: Path, tmp_path: Path) -> None:
    code = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=True, capture_output=True, text=True)
    (built,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(built)
    outside = {name for name in archive.namelist() if ".dist-info/" not in name}
    # Nothing of tasks/ or experts/: copies would go stale.
    assert outside == {"_t2eval.pth", "t2eval_bridge.py", "t2eval_bridge.pth"}
    assert archive.read("_t2eval.pth").decode().strip() == str(root)
