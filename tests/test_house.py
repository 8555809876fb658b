"""The house: what an import loads, the environment, tags against pages, nothing private in tracked
files.
"""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import gsae

ROOT = Path(__file__).parents[1]
CODE = sorted((ROOT / "gsae").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_listing_needs_no_torch():
    code = (
        "import sys, gsae.cli; gsae.cli.main(['list', 'pareto']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "baseline" in done.stdout


def test_environment_file():
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(env) == {"name", "channels", "dependencies"} and env["channels"] == ["conda-forge"]
    assert env["name"] == PROJECT["name"] and "pip" in env["dependencies"]
    python = next(d for d in env["dependencies"] if isinstance(d, str) and d.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.split("=")[-1] + ".0")
    (pip,) = [d["pip"] for d in env["dependencies"] if isinstance(d, dict)]
    for line in pip:
        extras = re.fullmatch(r"-e \.\[([\w,]+)\]", line)
        assert extras and set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])


def test_environment_requirements_parse_and_are_pinned():
    pins = {Requirement(x).name.lower().replace("_", "-") for x in lines("constraints.txt")}
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for text in group:
            assert Requirement(text).name.lower().replace("_", "-") in pins, (
                f"{text} has no pin in constraints.txt"
            )


def test_pins_install_on_the_oldest_python_promised():
    """Debian 12 has 3.11.2: a pin of a release for 3.11.5 and newer once kept `make book` from
    starting there.
    """
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    for pin in map(Requirement, lines("constraints.txt")):
        try:
            needs = metadata(pin.name)["Requires-Python"]
        except PackageNotFoundError:
            continue  # of a group that is not installed here
        assert not needs or SpecifierSet(needs).contains(oldest), f"{pin} needs Python {needs}"


def lines(name):
    return [x for x in (ROOT / name).read_text().splitlines() if x and not x.startswith("#")]


def test_the_workflows_run_the_targets_of_a_laptop():
    test, publish = (
        yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
        for name in ("test.yml", "publish.yml")
    )
    when = test[True]  # which YAML makes of `on`
    assert when["push"]["branches"] == ["main"] and len(when["schedule"][0]["cron"].split()) == 5
    assert ".ci/run" in [step.get("run") for step in test["jobs"]["test"]["steps"]]
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text()
    for version in test["jobs"]["test"]["strategy"]["matrix"]["python"]:
        assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")
    after, steps = publish[True]["workflow_run"], publish["jobs"]["publish"]["steps"]
    assert after["workflows"] == [test["name"]] and after["branches"] == ["main"]
    assert "make book" in [step.get("run") for step in steps]
    used = {step["uses"].split("@")[0]: step.get("with", {}) for step in steps if "uses" in step}
    assert (
        used["actions/upload-pages-artifact"]["path"] == "_build/html"
        and "actions/deploy-pages" in used
    )


def test_one_repository_url():
    urls = (
        PROJECT["urls"]["Repository"],
        yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"],
    )
    assert set(urls) == {gsae.REPO}


def test_the_readme_shows_the_verdicts_of_the_evidence():
    from gsae.claims import readme

    text = (ROOT / "README.md").read_text()
    rounding = re.compile(
        r"\d\S*e-\d+"
    )  # of identities checked live: it differs between processors
    assert rounding.sub("", readme.with_table(text)) == rounding.sub("", text), "run `gsae readme`"
    assert str(readme.FIGURE) in text and (ROOT / readme.FIGURE).exists()


def tagged(pattern, paths):
    return {m for p in paths for m in re.findall(pattern, p.read_text())}


def test_every_equation_has_its_line_and_its_test():
    labels = set(re.findall(r"^\(eq-(\d+)\)=", (ROOT / "book/equations.md").read_text(), re.M))
    assert labels
    code = tagged(r"Eqs?\.? (\d+)", CODE)
    tests = tagged(r"def test_\w*?eq(\d+)_", (ROOT / "tests").rglob("test_*.py"))
    assert labels <= code, f"no code line for {labels - code}"
    assert labels <= tests, f"no test for {labels - tests}"


def test_every_deviation_tag_has_its_entry_and_every_entry_its_tag():
    listed = set(re.findall(r"^\| (D\d+) \|", (ROOT / "book/deviations.md").read_text(), re.M))
    used = tagged(r"\b(D\d+)\b(?=[,;:.)\s])", [p for p in CODE if "data" not in p.parts])
    assert listed == {f"D{i + 1}" for i in range(len(listed))}
    assert used <= listed, f"no entry for {used - listed}"
    assert listed <= used, f"no code line for {listed - used}"


def test_nothing_private_in_tracked_files():
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    private = re.compile(
        r"(?<![A-Za-z])/(?:work|root)/|https?://[a-z.]*(?:pythonhosted|npmjs|debian)\."
    )
    for name in names:
        if (
            name.endswith((".py", ".md", ".json", ".ipynb", ".yml", ".toml", ".txt", ".css"))
            and "test_house" not in name
        ):
            assert not private.search((ROOT / name).read_text()), name


def test_manifest_names_the_packaged_text_and_model():
    manifest = json.loads((ROOT / "gsae/data/manifest.json").read_text())
    for name in ("smollm2", "gelu-1l-mini"):
        assert (
            set(manifest["corpora"][name]) == {"train-128", "eval-128", "lm_heldout-128"}
            and manifest["lms"][name]
        )
    record = json.loads((ROOT / "gsae/data/gelu-1l-mini/training.json").read_text())
    weights = (ROOT / "gsae/data/gelu-1l-mini/model.safetensors").read_bytes()
    assert (
        hashlib.sha256(weights).hexdigest()[:16]
        == record["weights"]
        == manifest["lms"]["gelu-1l-mini"]
    )
    assert record["corpus"] == manifest["corpora"]["gelu-1l-mini"]["train-128"] and record["curve"]
    assert sum(p.stat().st_size for p in (ROOT / "gsae/data/gelu-1l-mini").iterdir()) <= 6_000_000
