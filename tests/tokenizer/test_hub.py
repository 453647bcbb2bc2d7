"""GPT-2's vocabulary by its name on the Hugging Face Hub, through the Hub's real client, and from tiktoken's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2lab import Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.bpe import bytes_to_unicode
from loopback_hub import gpt2lab_with, loopback_hub


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """A hub's models: one with a small vocabulary in GPT-2's files, one without."""
    folder = tmp_path_factory.mktemp("small")
    files = Tokenizer.train(["low low lower lower"], 262).export(folder, "gpt2")
    return {"owner/small": {file.name: file.read_bytes() for file in files}, "owner/empty": {"README.md": b"nothing"}}


def test_a_name_on_the_hub_is_fetched_once(small: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    export = ["tokenizer", "export", "hub:owner/small"]
    with loopback_hub(small) as endpoint:
        done = gpt2lab_with(endpoint, tmp_path / "home", *export, "--out", str(tmp_path / "first"))
        assert done.returncode == 0, done.stderr
    loaded = Tokenizer.load(tmp_path / "first")
    assert loaded.n_vocab == 262 and bytes_to_unicode(loaded.merges[0][0]) == "l"
    # The server is gone, its cache is not.
    done = gpt2lab_with(
        "http://127.0.0.1:9", tmp_path / "home", *export, "--out", str(tmp_path / "second"), offline=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/smal", "owner/smal is no directory, and the Hub has no such model, or only for members"),
        ("owner/empty", "holds no GPT-2 vocabulary; it needs encoder.json and vocab.bpe, or vocab.json and merges"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(
    name: str, said: str, small: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    with loopback_hub(small) as endpoint:
        done = gpt2lab_with(endpoint, tmp_path / "home", "tokenizer", "show", f"hub:{name}")
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    argv = ["tokenizer", "show", "hub:owner/small"]
    done = gpt2lab_with("http://127.0.0.1:9", tmp_path, *argv, offline=True)
    assert done.returncode == 2
    assert "owner/small is no directory, and the Hub cannot be reached, nor is it in the Hub's cache" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
def test_tiktokens_cache_is_found_where_tiktoken_looks(
    variable: str, gpt2_vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(InputError, match="holds no GPT-2 vocabulary"):
        Tokenizer.gpt2("tiktoken")
    for name, cached in {
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    }.items():
        (tmp_path / cached).write_bytes((gpt2_vocabulary / name).read_bytes())
    assert Tokenizer.gpt2("tiktoken").n_vocab == 50257


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("./no/where", r"\./no/where does not exist; give a directory, or a name on the Hub: gpt2 or hub:OWNER/NAME"),
        ("tokeniser", r'tokeniser does not exist \(did you mean "tokenizer"\?\); give a directory'),
        ("runs/tok", r'runs/tok does not exist \(did you mean "runs/toks"\?\); give a directory'),
        ("gpt2-xxl", r'gpt2-xxl does not exist \(did you mean "gpt2-xl"\?\)'),
        ("hub:../x", r"hub:\.\./x does not exist"),
    ],
)
def test_what_may_be_a_mistyped_path_is_refused_and_not_asked_of_the_hub(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "runs" / "toks").mkdir(parents=True)
    with pytest.raises(InputError, match=said):
        Tokenizer.gpt2(given)


def test_load_reads_gpt2s_files_where_there_is_no_tokenizer_json(gpt2_vocabulary: Path) -> None:
    assert Tokenizer.load(gpt2_vocabulary).fingerprint == Tokenizer.gpt2(gpt2_vocabulary).fingerprint
