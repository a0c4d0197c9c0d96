"""The layers, the sizes of folders, and what the documents point to."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import ROOT

PACKAGES = ("hvp_jax", "data", "configs")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))
MODEL_IMPORTS = {"jax", "flax", "numpy", "jaxtyping", "hvp_jax"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The packages and their contracts, to be changed by a test."""
    folder = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_contracts_are_kept(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert "4 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("hvp_jax/models/clip.py", "import hvp_jax.cli", "The layers"),
        ("hvp_jax/models/clip.py", "import data.records", "The model imports"),
        ("hvp_jax/training/loop.py", "import hvp_jax.weights.initial", "The layers"),
        ("hvp_jax/parallel/sharding.py", "import hvp_jax.monitoring.profiler", "The layers"),
        ("data/tokenizer.py", "import hvp_jax", "Data and configs"),
        ("data/video/decode.py", "import hvp_jax", "Data and configs"),
        ("data/records.py", "import data.inputs", "Inside data"),
    ],
)
def test_an_import_against_the_layers_breaks_a_contract(copy, file, line, contract):
    path = copy / file
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    try:
        done = lint(copy)
    finally:
        path.write_text(before)
    assert done.returncode == 1
    assert re.search(rf"^{contract}.* BROKEN", done.stdout, re.MULTILINE), done.stdout


def test_the_model_imports_jax_flax_and_itself():
    for path in ROOT.glob("hvp_jax/models/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.module, path
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                assert top in MODEL_IMPORTS | sys.stdlib_module_names, (path, name)
                assert top != "hvp_jax" or name.startswith("hvp_jax.models"), (path, name)


def test_no_folder_of_the_package_has_more_than_ten_files():
    for folder in {path.parent for path in (ROOT / "hvp_jax").rglob("*.py")}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 10, folder


def test_every_folder_of_the_package_has_its_layer():
    layers = (ROOT / "pyproject.toml").read_text().partition("layers = [")[2].partition("]")[0]
    for folder in (ROOT / "hvp_jax").glob("*/__init__.py"):
        assert re.search(rf"\bhvp_jax\.{folder.parent.name}\b", layers), folder


def test_source_files_and_functions_are_short():
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 100
    for path in sources:
        text = path.read_text()
        assert len(text.splitlines()) <= 250, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and path != ROOT / "configs/base.py":
                assert (node.end_lineno or 0) - node.lineno < 60, (path, node.name)


def test_tests_mirror_the_tree():
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").exists()}
    packages = {path.parent.name for path in (ROOT / "hvp_jax").glob("*/__init__.py")}
    assert folders == packages | {"data", "helpers"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_in_a_document_exists(document):
    path = ROOT / document
    text = path.read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:hvp_jax|data|configs|tests|docs|benchmarks|launch)/[\w./]*)`", text)
    named += re.findall(r"^(?:hvp_jax|data|configs|benchmarks)/\w*/?", text, re.MULTILINE)
    for link in linked:
        assert (path.parent / link).exists(), link
    for name in named:
        assert (ROOT / name.replace("NAME", "*")).exists() or "NAME" in name, name
    assert linked + named or document == "docs/plan.md"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
