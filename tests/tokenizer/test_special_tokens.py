"""Special tokens that are added later, vocabularies in tiktoken's form, and special text that is an error."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiktoken
from tiktoken._educational import bpe_train

from gpt2lab import Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.pretokenize import CL100K

TEXT = "The lowest low follows the slow flow. It's 1999: naïve 你好, isn't it?\n\n" * 4
DIALOG = "<|user|>low?<|end|><|endoftext|> lower<|user|>"


def written(ranks: Mapping[bytes, int], file: Path) -> Path:
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    file.write_text("".join(lines), encoding="ascii")
    return file


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """Of tiktoken's own trainer, whose bytes have other ids than GPT-2's."""
    return bpe_train(TEXT, 290, CL100K.published, visualise=None)


def test_added_tokens_get_the_next_ids_and_no_text_gets_others(tiny: Tokenizer, tmp_path: Path) -> None:
    more = tiny.with_special(["<|user|>", "<|end|>"])
    assert more.special_tokens == {"<|endoftext|>": 261, "<|user|>": 262, "<|end|>": 263} and more.n_vocab == 264
    assert more.encode(DIALOG) == tiny.encode(DIALOG), "where they are not allowed, they are ordinary text"
    ids = more.encode(DIALOG, "all")
    assert [ids.count(number) for number in (261, 262, 263)] == [1, 2, 1] and more.decode(ids) == DIALOG
    more.save(tmp_path / "more")
    assert Tokenizer.load(tmp_path / "more").fingerprint == more.fingerprint
    assert more.extends(tiny) and tiny.extends(tiny) and more.with_special(["<|x|>"]).extends(tiny)
    other = Tokenizer.train(["high higher"], 262)
    assert not tiny.extends(more) and not more.extends(other) and not more.extends(tiny.with_special(["<|end|>"]))


ADDED = [
    ([], "no special token to add is given"),
    (["<|a|>", "<|a|>"], r"'<\|a\|>' is given 2 times; add each once"),
    (["<|endoftext|>"], r"'<\|endoftext\|>' is in the vocabulary already, with the id 261"),
    (["low"], "'low' is also an ordinary token"),
    ([""], "a special token is empty"),
]


@pytest.mark.parametrize(("names", "said"), ADDED)
def test_tokens_that_cannot_be_added_are_refused(names: list[str], said: str, tiny: Tokenizer) -> None:
    with pytest.raises(InputError, match=said):
        tiny.with_special(names)


def test_ranks_encode_as_tiktoken_does(ranks: dict[bytes, int], tmp_path: Path) -> None:
    special = {"<|endoftext|>": 292, "<|end|>": 290}
    ours = Tokenizer.from_tiktoken(written(ranks, tmp_path / "a.tiktoken"), "cl100k", special)
    theirs = tiktoken.Encoding("theirs", pat_str=CL100K.published, mergeable_ranks=ranks, special_tokens=special)
    for text in (TEXT, DIALOG, "\x00ünseen ﷽", ""):
        assert ours.encode(text, ("<|endoftext|>", "<|end|>")) == theirs.encode(text, allowed_special="all")
        assert ours.encode_reference(text) == theirs.encode(text, disallowed_special=())
    assert ours.special_tokens == special | {"<|reserved_291|>": 291} and ours.eot == 292
    ours.save(tmp_path / "tok")
    assert Tokenizer.load(tmp_path / "tok").fingerprint == ours.fingerprint


def test_gpt2s_ranks_are_gpt2(gpt2: Tokenizer, tmp_path: Path) -> None:
    (file,) = gpt2.export(tmp_path, "tiktoken")
    assert Tokenizer.from_tiktoken(file, "gpt2", ["<|endoftext|>"]).fingerprint == gpt2.fingerprint


def line(token: bytes, rank: object) -> str:
    return f"{base64.b64encode(token).decode()} {rank}"


BYTES = [line(bytes([byte]), byte) for byte in range(256)]
DAMAGED = [
    (["!"], {}, "line 257: '!' is not a token in base64 and its rank"),
    ([line(b"ab", "x")], {}, "line 257: "),
    ([line(b"ab", 257)], {}, "no token has the rank 256"),
    ([line(b"abc", 256)], {}, r"'abc' of rank 256 is not made of two tokens of lower rank \(a b c\)"),
    ([], {"<|end|>": 10**9}, "has the id 1000000000, which leaves 999,999,744 ids without a token; at most 1,000 can"),
    ([line(b"ab", 10**9)], {}, "no token has the rank 256"),
    ([], {"<|reserved_256|>": 258}, "has the id 258, and its name is that of the free id 256; give it that id"),
    ([], ["<|end|>", "<|end|>"], r"'<\|end\|>' is given more than once; give each once"),
    ([], {"<|end|>": 255}, r"'<\|end\|>' has the id 255; give it 256 or above"),
]


@pytest.mark.parametrize(("lines", "special", "said"), DAMAGED)
def test_a_file_that_is_not_of_ranks_is_refused(
    lines: list[str], special: dict[str, int] | list[str], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.tiktoken"
    file.write_text("\n".join(BYTES + lines), encoding="ascii")
    with pytest.raises(InputError, match=rf"a\.tiktoken.*{said}"):
        Tokenizer.from_tiktoken(file, "gpt2", special)


def test_special_text_is_an_error_where_it_is_asked_for(tiny: Tokenizer) -> None:
    more, theirs = tiny.with_special(["<|user|>"]), "low<|user|>"
    assert more.encode(theirs, "all", "all") == [*tiny.encode("low"), 262]
    assert more.encode(theirs, (), "<|endoftext|>") == more.encode(theirs)
    assert [*more.encode_iter(theirs, "all", "all")] == more.encode_batch([theirs], "all", "all")[0]
    for refused in ("all", ["<|user|>"]):
        for encode in (
            more.encode,
            lambda text, *special: more.encode_batch([text], *special),
            lambda text, *special: [*more.encode_iter(list(text), *special)],
        ):
            with pytest.raises(InputError, match=r"'<\|user\|>' at character 3; allow it by allowed_special"):
                encode(theirs, "<|endoftext|>", refused)
    far = ("low lower " * 100_000, theirs[:5], theirs[5:])
    with pytest.raises(InputError, match=r"'<\|user\|>' at character 1000003; allow"):
        list(more.encode_iter(far, (), "all"))
    with pytest.raises(InputError, match='unknown special token "<|x|>"'.replace("|", r"\|")):
        more.encode(theirs, disallowed_special=["<|x|>"])
