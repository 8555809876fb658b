"""The shape of the chapters: they explain, the package computes, and nothing they printed is in
git.
"""

import json
import re
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml

import gsae

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request):
    return json.loads(request.param.read_text())


def sources(notebook, kind):
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def test_there_are_chapters():
    assert [p.stem[:2] for p in NOTEBOOKS] == [
        f"{i + 1:02d}" for i in range(len(NOTEBOOKS))
    ] and NOTEBOOKS


def test_cells_are_short_and_define_nothing(notebook):
    for source in sources(notebook, "code"):
        assert len(source.splitlines()) <= 12, source
        assert not re.search(r"\b(def|lambda)\b\s+\w", source), source


def test_no_outputs(notebook):
    assert not any(c.get("outputs") or c.get("execution_count") for c in notebook["cells"])


def test_runs_on_colab(notebook):
    meta = notebook["metadata"]
    assert (
        meta["kernelspec"]["name"] == "python3" and meta["accelerator"] == "GPU" and meta["colab"]
    )
    first = sources(notebook, "code")[0]
    assert f"git+{gsae.REPO}@main" in first
    assert 'if "google.colab" in sys.modules:\n    %pip install' in first  # there, and nowhere else
    assert "".join(sources(notebook, "code")).count("%pip") == 1
    assert (
        '\n    os.environ["GSAE_SCALE"] = "smoke"' in first and "GSAE_CACHE" in first
    )  # lines to change


def test_a_badge_opens_the_notebook_on_colab():
    """For readers on GitHub; the book has its launch button, and loads no picture from
    elsewhere.
    """
    for path in NOTEBOOKS:
        address = f"https://colab.research.google.com/github{urlparse(gsae.REPO).path}/blob/main/notebooks/{path.name}"
        (badge,) = (
            c
            for c in json.loads(path.read_text())["cells"]
            if "colab-badge.svg" in "".join(c["source"])
        )
        assert "".join(badge["source"]).endswith(f"]({address})") and badge["metadata"]["tags"] == [
            "remove-cell"
        ]


def test_the_scale_is_in_sight_where_runs_are_read(notebook):
    for source in sources(notebook, "code"):
        for line in source.splitlines():
            assert "gsae.run(" not in line or "scale" in line, line


def test_the_launch_button_opens_the_notebook_in_the_repository():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["launch_buttons"]["colab_url"] == "https://colab.research.google.com"
    assert config["repository"] == {"url": gsae.REPO, "branch": "main", "path_to_book": ""}
    chapters = [
        c["file"]
        for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
        for c in part["chapters"]
    ]
    assert {p.with_suffix("").relative_to(ROOT).as_posix() for p in NOTEBOOKS} == {
        c for c in chapters if c.startswith("notebooks/")
    }


def test_opens_with_the_question_and_ends_with_what_could_change_it(notebook):
    text = sources(notebook, "markdown")
    assert text[0].startswith("# ") and "*Paper:" in text[0] and "?" in text[0]
    assert "could change" in text[-1]


def test_figures_have_alt_text(notebook):
    for cell in notebook["cells"]:
        if "".join(cell["source"]).strip().splitlines()[-1:] and cell["cell_type"] == "code":
            if re.match(r"\w*figures\w*\.", "".join(cell["source"]).splitlines()[-1]):
                assert cell["metadata"]["mystnb"]["image"]["alt"], cell["source"]
