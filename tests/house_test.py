"""The rules of the house that a machine can check; CONTRIBUTING.md says what they are for."""

import ast
import importlib.util
import json
import os
import re
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import gac_jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "gac_jax").rglob("*.py"))
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
FOLDERS = ("gac_jax", "configs", "tests", "benchmarks", "launch")
SOURCES = [ROOT / "setup.py", *(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))]

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
MAX_MEDIAN_FUNCTION_LINES = 15

# Modules without a test file of their own, and where their behaviour is tested.
WITHOUT_OWN_TEST = {
    "gac_jax/errors.py": "one exception class; every test of bad input raises it",
    "gac_jax/metrics/metric.py": "protocols and plain records; the tests of every metric use them",
    "gac_jax/stages/task.py": "a protocol without code; the tests of both stages use it",
}

NAMES = (
    "train",
    "sample",
    "probe",
    "evaluate",
    "listening",
    "data.pack",
    "tokenize",
    "fit_entropy_model",
    "export",
    "restore",
    "dry_run",
)
COMMANDS = tuple(f"gac_jax.{name}" for name in NAMES)

# What a file or folder of the package never imports: its side of the one-way data flow. "" is the
# whole package. JAX is checked apart, in a fresh interpreter, because there it must not arrive
# through another module either.
NEVER_IMPORTS = {
    "": {"pickle", "tensorflow", "torch", *COMMANDS},
    "bitstream.py": {"gac_jax.models", "gac_jax.signal", "gac_jax.codec"},
    "flow.py": {"flax", "gac_jax.models"},
    "codec.py": {"gac_jax.data", "gac_jax.training"},
    "gacx.py": {"flax", "gac_jax.codec", "gac_jax.models", "gac_jax.stages", "gac_jax.training"},
    "restore.py": {"absl", "flax", "gac_jax.codec", "gac_jax.models", "gac_jax.signal.audio_io"},
    "signal": {"ml_collections", "gac_jax.models", "gac_jax.data", "gac_jax.training"},
    "models": {
        "absl",
        "ml_collections",
        "soundfile",
        "gac_jax.codec",
        "gac_jax.data",
        "gac_jax.distributed",
        "gac_jax.sharding",
        "gac_jax.signal.audio_io",
        "gac_jax.stages",
        "gac_jax.training",
    },
    "data": {"gac_jax.models", "gac_jax.stages", "gac_jax.training"},
    "stages": {"gac_jax.data", "gac_jax.training"},
    "training/loop.py": {"gac_jax.stages.understanding", "gac_jax.stages.generation"},
}
IMPORTED_WITHOUT_JAX = (
    "gac_jax",
    "gac_jax.errors",
    "gac_jax.rates",
    "gac_jax.bitstream",
    "gac_jax.compressed",
    "gac_jax.range_coder",
    "gac_jax.signal.audio_io",
    "gac_jax.signal.loudness",
)
MAY_HAVE_FLAGS = {f"{name.replace('.', '/')}.py" for name in ("gac_jax.cli", *COMMANDS)}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def mirror_of(module: str) -> Path:
    return ROOT / re.sub(r"^gac_jax/(.*)\.py$", r"tests/\1_test.py", module)


def functions(path: Path) -> list[tuple[str, int]]:
    """Names every function of a file with its lines, signature and docstring included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [(f"{name_of(path)}:{node.name}", span(node)) for node in found]


def span(node: ast.FunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def imported(path: Path) -> set[str]:
    """Lists the modules a file imports anywhere, names imported from a package included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_files_are_short() -> None:
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {name: n for name, n in lines.items() if n > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = [entry for path in SOURCES for entry in functions(path)]
    assert [entry for entry in lengths if entry[1] > MAX_FUNCTION_LINES] == []


def test_the_median_function_is_short() -> None:
    lengths = [lines for path in PACKAGE for _, lines in functions(path)]
    assert statistics.median(lengths) <= MAX_MEDIAN_FUNCTION_LINES


def test_every_module_has_a_test_file() -> None:
    modules = {name_of(path) for path in PACKAGE if path.stem != "__init__"}
    untested = {name for name in modules if not mirror_of(name).exists()}
    assert untested == set(WITHOUT_OWN_TEST)


@pytest.mark.parametrize("place", NEVER_IMPORTS, ids=lambda place: place or "package")
def test_data_flows_one_way(place: str) -> None:
    root = ROOT / "gac_jax" / place
    files = [root] if root.is_file() else sorted(root.rglob("*.py"))
    assert files, f"gac_jax/{place} is gone: take it out of NEVER_IMPORTS"
    forbidden = re.compile("|".join(rf"{re.escape(name)}(\.|$)" for name in NEVER_IMPORTS[place]))
    breaches = {
        name_of(path): sorted(name for name in imported(path) if forbidden.match(name))
        for path in files
    }
    assert {path: names for path, names in breaches.items() if names} == {}


def test_only_commands_have_flags() -> None:
    flags = {"absl.app", "absl.flags", "argparse", "gac_jax.cli"}
    assert {name_of(path) for path in PACKAGE if imported(path) & flags} <= MAY_HAVE_FLAGS


def test_the_container_and_audio_files_need_no_jax() -> None:
    imports = "; ".join(f"import {name}" for name in IMPORTED_WITHOUT_JAX)
    result = run("-c", f"import sys; {imports}; print('jax' in sys.modules)")
    assert (result.stdout.strip(), result.stderr) == ("False", "")


def test_public_names_resolve() -> None:
    assert {getattr(gac_jax, name).__name__ for name in gac_jax.__all__ if name[0] != "_"} == {
        "Codec",
        "Tokens",
        "UserError",
        "load",
    }
    assert set(gac_jax.__all__) <= set(dir(gac_jax))
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        gac_jax.lode  # noqa: B018  # the access is the test


def test_a_suppressed_check_says_why() -> None:
    bare = [
        f"{name_of(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"# (noqa|type: ignore)[^#]*$", line)
    ]
    assert bare == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load(path: Path) -> None:
    config = runpy.run_path(str(path))["get_config"]()
    assert isinstance(config, ConfigDict)
    assert set(config.mesh) == {"data", "fsdp", "tensor"}
    json.dumps(config.to_dict())  # checkpoints and model folders keep it as JSON


@pytest.mark.parametrize("module", COMMANDS)
def test_entry_points_explain_themselves(module: str) -> None:
    result = run("-m", module, "--help")
    assert "Traceback" not in result.stderr
    assert re.search(r"^ +--\w+", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_lint_and_types(command: str) -> None:
    tool, *arguments = command.split()
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: pip install -e '.[dev]'")
    result = run("-m", tool, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ci_runs_the_readme_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = script.strip().splitlines()[-1]
    assert command.endswith("-m pytest")
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_changelog_names_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d[^\]]*)\]", text, re.MULTILINE)
    assert releases[0] == gac_jax.__version__
