"""The rooms of the package: who may import whom, that no import goes in a circle, and the measures
of the code.
"""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gsae"
FILES = sorted(PACKAGE.rglob("*.py"))
MAY = {  # room -> the rooms that it may import, in reading order
    "saes": {"system"},
    "training": {"saes", "system"},
    "lm": {"system"},
    "evidence": {"system"},
    "experiments": {"evidence", "lm", "training", "saes", "system"},
    "figures": {"evidence"},
    "interpretability": {"experiments", "evidence", "lm", "saes", "system"},
    "claims": {
        "interpretability",
        "experiments",
        "figures",
        "evidence",
        "training",
        "saes",
        "system",
    },
    "system": set(),
}
# of rooms and of the files beside them: each stands one floor above the highest that it imports
FLOORS = 9


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in whole}
    return {name for name in names if name == "gsae" or name.startswith("gsae.")}


def room(name: str) -> str:
    return (name.split(".") + [""])[1]


def test_every_file_is_in_a_room():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}
    assert {path.parent.name for path in FILES if path.parent != PACKAGE} == set(MAY)
    assert all(path.parent.parent == PACKAGE for path in FILES if path.parent != PACKAGE)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PACKAGE], ids=module)
def test_a_room_imports_only_the_rooms_in_its_list(path):
    own = path.parent.name
    strange = {name for name in imports(path) if room(name) != own and room(name) not in MAY[own]}
    assert not strange, (
        f"{module(path)} imports {', '.join(sorted(strange))}; {own} may import "
        f"{MAY[own] or 'nothing'}"
    )


def test_the_rooms_stand_above_each_other():
    list(TopologicalSorter(MAY).static_order())  # raises CycleError


def test_no_import_goes_in_a_circle():
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_the_floors_are_few():
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        graph.setdefault(room(name), set()).update(room(below) for below in imports(path))
    floor: dict[str, int] = {}
    for name in TopologicalSorter(
        {name: below - {name} for name, below in graph.items()}
    ).static_order():
        floor[name] = 1 + max((floor[below] for below in graph[name] - {name}), default=0)
    for number in sorted(set(floor.values())):
        print(
            f"floor {number}: "
            f"{', '.join(sorted(name or 'gsae' for name, at in floor.items() if at == number))}"
        )
    assert max(floor.values()) <= FLOORS


def sentence(name: str) -> str:
    """What a room's `__init__` says of it, on one line."""
    whole = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text()))
    return " ".join(whole.split("\n\n")[0].split())


@pytest.mark.parametrize("name", MAY)
def test_readme_and_contributing_show_the_rooms(name):
    row = f"| [`{name}`](gsae/{name}) | {sentence(name)} |"
    below = ", ".join(other for other in MAY if other in MAY[name]) or "nothing"
    assert row in (ROOT / "README.md").read_text()
    assert f"{row} {below} |" in (ROOT / "CONTRIBUTING.md").read_text()


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    named = re.findall(r"`((?:gsae|tests|benchmarks|book)/[\w./-]+\.\w+)`", text)
    named += re.findall(r"\]\(((?:gsae|tests|benchmarks|book|notebooks)/[^)#]*)\)", text)
    new = {"gsae/saes/mine.py"}  # what CONTRIBUTING tells the reader to write
    assert not [name for name in named if name not in new and not (ROOT / name).exists()]


def test_files_hold_what_contributing_says_of_them():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name, path in re.findall(r"`([A-Z]+)` \(`(gsae/[\w/]+\.py)`\)", text):
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(), re.M), f"{name} is not in {path}"
    assert "`ARCHITECTURES` (`gsae/saes/__init__.py`)" in text


def test_public_names_are_those_of_their_rooms():
    import gsae
    from gsae.evidence import run
    from gsae.experiments import runner
    from gsae.saes import files
    from gsae.training import loop

    assert gsae.Run is run.Run and gsae.grid is run.grid and gsae.run is runner.run
    assert gsae.train is loop.train and gsae.load is files.load
    assert gsae.ARCHITECTURES == {"baseline": gsae.BaselineSAE, "gated": gsae.GatedSAE}


SLOW = {  # what a name of the package must not load
    "gsae.load": ("transformers", "transformer_lens", "huggingface_hub", "datasets", "pandas"),
    "gsae.train": ("transformers", "transformer_lens", "huggingface_hub", "datasets", "pandas"),
    "gsae.Run": ("torch", "transformers", "pandas"),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_public_name_loads_no_more_than_it_needs(name):
    code = f"import sys, gsae; {name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(SLOW[name]) & set(done.stdout.split())
