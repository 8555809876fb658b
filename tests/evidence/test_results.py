"""Result files: written whole, caught when edited, refused when dirty, read as a table."""

import json

import numpy as np
import pytest

from gsae.evidence import metrics as stats
from gsae.evidence import provenance, result_files
from gsae.evidence import sums as metrics

SETTINGS = {"run": "0123456789ab", "control": "pruned", "increase": 0.01}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GSAE_EVIDENCE", str(tmp_path))


def write(settings=SETTINGS, scale="smoke", dirty=False, force=False, **values):
    sums = {k: (np.arange(128) % 7 + 1.0) for k in metrics.ACTIVATION_SUMS}
    values = stats.ratios(sums) | {"quantiles": [0.1, 0.2]} | values
    origin = provenance.provenance("cpu", 1.0, {}, "") | {"dirty": dirty}
    lists = {k: v.tolist() for k, v in sums.items()}
    return result_files.write_result("controls", settings, values, origin, scale, lists, force)


def test_round_trip():
    path = write()
    other = write(SETTINGS | {"increase": 0.005})
    assert path != other and result_files.find_result("controls", SETTINGS, "smoke") == path
    assert result_files.find_result("controls", SETTINGS | {"increase": 0.5}, "smoke") is None
    df = result_files.load_results("controls", "smoke")
    assert list(df["increase"]) == [0.005, 0.01] and list(df["status"]) == [
        "done",
        "done",
    ]  # sorted by settings
    assert list(df["file"]) == [f"controls/{p.name}" for p in (other, path)]
    assert len(df["sums"][0]["l0"]) == 128 and df["quantiles"][0] == [0.1, 0.2]
    again = result_files.read_result(path)
    assert again["settings"] == SETTINGS and again["provenance"]["commit"] == provenance.git(
        "rev-parse", "HEAD"
    )


def test_order_of_settings_does_not_matter():
    assert result_files.result_id("a", {"x": 1, "y": 2}, 1) == result_files.result_id(
        "a", {"y": 2, "x": 1}, 1
    )
    kinds = {
        result_files.result_id(*k)
        for k in (("a", {"x": 1}, 1), ("b", {"x": 1}, 1), ("a", {"x": 2}, 1), ("a", {"x": 1}, 2))
    }
    assert len(kinds) == 4


@pytest.mark.parametrize("edit", ["setting", "metric", "nan", "cut", "schema", "sums", "name"])
def test_an_edited_file_is_caught(edit):
    path = write()
    data = json.loads(path.read_text())
    if edit == "setting":
        data["settings"]["increase"] = 0.02
    elif edit == "metric":
        data["values"]["l0"] *= 1.01
    elif edit == "nan":
        data["values"]["quantiles"][1] = float("nan")
    elif edit == "schema":
        data["schema"] = 2
    elif edit == "sums":
        data["sums"]["l0"].pop()
    text = json.dumps(data)
    path.write_text(text[:-100] if edit == "cut" else text)
    if edit == "name":
        path = path.rename(path.with_name("0123456789ab.json"))
    with pytest.raises(provenance.EvidenceError, match=path.name):
        result_files.read_result(path)
    if edit != "cut":
        with pytest.raises(provenance.EvidenceError, match=path.name):
            result_files.load_results("controls", "smoke")


def test_what_may_not_be_written(tmp_path):
    with pytest.raises(provenance.EvidenceError, match="uncommitted"):
        write(scale="cpu", dirty=True)
    with pytest.raises(provenance.EvidenceError, match="plain"):
        write({"run": [1, 2]})
    with pytest.raises(provenance.EvidenceError, match="gain"):
        write(gain=float("inf"))
    with pytest.raises(provenance.EvidenceError, match="sums give"):
        write(l0=99.0)
    assert not list(tmp_path.rglob("*.*"))
    assert write(scale="cpu", dirty=True, force=True).exists()


def test_run_files_of_the_same_folder_are_left_out_and_older_recipes_labelled(monkeypatch):
    path = write()
    path.with_name("aaaaaaaaaaaa.json").write_text(
        '{"schema": 1, "recipe": 1, "id": "aaaaaaaaaaaa", "run": {}}'
    )
    assert len(result_files.load_results("controls", "smoke")) == 1
    monkeypatch.setitem(result_files.RESULT_RECIPES, "controls", 2)
    assert list(result_files.load_results("controls", "smoke")["status"]) == ["old recipe"]
    assert result_files.find_result("controls", SETTINGS, "smoke") is None


def test_nothing_on_record_is_an_empty_table():
    df = result_files.load_results("ito", "smoke")
    assert len(df) == 0 and {"status", "id", "sums"} <= set(df.columns)
