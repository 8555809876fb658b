"""Small files: written whole or not at all, laid out as asked."""

import json

import pytest

from gsae.system import files


def test_json_is_laid_out_as_asked(tmp_path):
    path, value = tmp_path / "folder" / "a.json", {"b": [1, 2], "a": "ä"}
    files.write_json(path, value)
    assert path.read_text() == json.dumps(value)
    files.write_json(path, value, indent=1, end="\n")
    assert path.read_text() == json.dumps(value, indent=1) + "\n"
    files.write_json(path, value, separators=(",", ":"), end="\n")
    assert path.read_text() == json.dumps(value, separators=(",", ":")) + "\n"


def test_a_number_that_is_not_finite_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")}, allow_nan=False)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_text_is_written_in_utf_8(tmp_path):
    files.write_text(tmp_path / "a.md", "λ\n")
    assert (tmp_path / "a.md").read_bytes() == "λ\n".encode()
