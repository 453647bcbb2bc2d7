"""Conversations: their text, which of its tokens count in the loss, and how that is stored, shown and checked."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import files_below, ids_of, write

from gpt2lab.cli.main import main
from gpt2lab.data.chat import NAMES, conversation
from gpt2lab.data.dataset import MANIFEST, TokenDataset, documents_with_counts, import_shards
from gpt2lab.data.loader import UNCOUNTED, Loader
from gpt2lab.data.prepare import prepare
from gpt2lab.data.shards import mask_of
from gpt2lab.data.streaming import StreamingDataset
from gpt2lab.errors import InputError
from gpt2lab.files import sha256_of
from gpt2lab.tokenizer.tokenizer import Tokenizer

SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "6."},
]
ROWS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from([*NAMES]), "content": st.text(max_size=6)}).filter(
        lambda message: message["role"] != "assistant" or message["content"].strip()
    ),
    min_size=1,
    max_size=6,
).filter(lambda messages: any(message["role"] == "assistant" for message in messages))


def spans_of(value: Any) -> tuple[tuple[str, bool], ...]:
    return conversation(value, "here", "strict").spans


def jsonl(path: Path, rows: list[Any]) -> str:
    return str(write(path, "".join(json.dumps(row) + "\n" for row in rows)))


def some_rows(number: int) -> list[Any]:
    """Conversations of one or two replies, and pairs."""
    rows = [
        {"messages": SAID[1 : 3 + 2 * (n % 2)] + [{"role": "user", "content": f"{n}"}] * (n % 5 == 0)}
        for n in range(number)
    ]
    return [{"prompt": f"{n}:", "completion": f" {n}"} if n % 3 == 0 else row for n, row in enumerate(rows)]


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: Tokenizer) -> TokenDataset:
    source = jsonl(tmp_path / "chat.jsonl", some_rows(200))
    return prepare([source], tokenizer, tmp_path / "data", format="chat", shard_tokens=501, val_fraction=0.2)


def test_the_assistants_text_counts_and_what_ends_it() -> None:
    assert spans_of({"messages": SAID}) == (
        ("System: Be brief.\n\nUser: 2 + 2?\n\nAssistant:", False),
        (" 4.\n\nUser:", True),
        (" And 3 + 3?\n\nAssistant:", False),
        (" 6.", True),
    )
    assert spans_of({"prompt": "2 + 2 =", "completion": " 4", "id": 5}) == (("2 + 2 =", False), (" 4", True))


@settings(deadline=None)
@given(ROWS, st.sampled_from(["gpt2", "cl100k"]))
def test_ids_are_those_of_the_whole_text(messages: list[Any], pattern: str) -> None:
    whole = "\n\n".join(f"{NAMES[message['role']]}: {message['content']}" for message in messages)
    spans = spans_of({"messages": messages})
    assert "".join(text for text, _ in spans) == whole
    tokenizer = Tokenizer.train([whole * 3], 300, pattern=pattern)
    assert [token for text, _ in spans for token in tokenizer.encode(text)] == tokenizer.encode(whole)


def test_every_token_of_the_file_counts_or_not_as_its_text_does(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [*some_rows(40), {"prompt": "", "completion": "said <|endoftext|> as text \u00e9"}]
    for name, content in (
        ("a.jsonl", "".join(json.dumps(row) + "\n\n" for row in rows).encode()),
        ("a.json", json.dumps(rows).encode()),
        ("a.jsonl.gz", gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())),
    ):
        source, out = write(tmp_path / name, content), tmp_path / f"{name}.out"
        options: dict[str, Any] = {"val_fraction": 0, "test_fraction": 0, "format": "chat", "shard_tokens": 37}
        stream = prepare([str(source)], tokenizer, out, **options).stream("train")
        ids, counted = (np.concatenate([*blocks]) for blocks in (stream.blocks(), stream.counted_blocks()))
        expected: list[tuple[int, bool]] = []
        ends_reply = False
        for row in rows:
            expected.append((tokenizer.eot or 0, ends_reply))
            for text, counts in spans_of(row):
                expected += [(token, counts) for token in tokenizer.encode(text)]
                ends_reply = counts
        assert list(zip(ids.tolist(), counted.tolist(), strict=True)) == expected
        starts = np.arange(0, len(ids) - 50, 7)
        assert (stream.counted(starts, 50) == counted[starts[:, None] + np.arange(50)]).all()
        for shard in stream.shards:
            assert mask_of(shard.path).stat().st_size == -(-shard.tokens // 8)


def test_targets_that_do_not_count_are_left_out_and_weights_give_the_mean_over_those_that_do(
    prepared: TokenDataset,
) -> None:
    stream = prepared.stream("train")
    ids, counted = (np.concatenate([*blocks]) for blocks in (stream.blocks(), stream.counted_blocks()))
    worth = np.random.default_rng(0).normal(size=len(ids))  # the loss of each token, say
    for random in (False, True):
        for world, micro_batch in ((1, 6), (1, 1), (2, 3), (3, 1)):
            loaders = [Loader(stream, 5, 6, micro_batch, 3, world, r, None, random) for r in range(world)]
            for step in range(20):
                sums, seen = np.zeros(world), []
                for rank, loader in enumerate(loaders):
                    for micro_step in range(loader.micro_steps):
                        batch = loader.batch(step, micro_step)
                        starts = loader.windows(step, micro_step) * (1 if random else 5)
                        places = starts[:, None] + np.arange(1, 6)
                        expected = np.where(counted[places], ids[places].astype(int), UNCOUNTED)
                        assert batch.targets.tolist() == expected.tolist()
                        own = places[counted[places]]
                        assert batch.weight is not None and (batch.weight > 0) == (len(own) > 0)
                        sums[rank] += batch.weight * worth[own].mean() if len(own) else 0.0
                        seen += own.tolist()
                assert loaders[0].counted(step) == len(seen)
                assert sums.mean() == pytest.approx(worth[seen].mean() if seen else 0.0)


def test_data_without_masks_has_the_bytes_of_earlier_versions(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the manifest names the source as it was given
    write(Path("text.txt"), "<|endoftext|>".join(f"Document {n}." for n in range(150)))
    dataset = prepare(["text.txt"], tokenizer, Path("out"))
    assert dataset.fingerprint == "8b859a955f94cac2103941c0ec86c2770b4f39477faf8c54de1ae171f563de0e"
    assert sha256_of(Path("out") / MANIFEST) == "3d48a391ffe49be66654ff7e3cbacbe4405b44288e171445e7d4e487765336d2"
    assert not list(dataset.directory.glob("*.mask"))
    batch = Loader(dataset.stream("train"), 8, 2, 2, 0).batch(0, 0)
    assert batch.weight is None and (batch.targets >= 0).all()


def test_conversations_are_split_whole_and_resume_as_text_does(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source, out = jsonl(tmp_path / "chat.jsonl", some_rows(60)), tmp_path / "data"
    options: dict[str, Any] = {"format": "chat", "val_fraction": 0.3, "test_fraction": 0.3}
    whole = prepare([source], tokenizer, tmp_path / "whole", **options)
    assert whole.manifest.split_rule.by == "hash"  # 60 documents of text would each be cut in three
    counts = [info.documents for info in whole.manifest.splits.values()]
    assert sum(counts) == 60 and min(counts) > 5

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([source], tokenizer, out, progress=interrupt, **options)
    with pytest.raises(InputError, match="begun with format chat, now None; resume with the same arguments"):
        prepare([source], tokenizer, out, val_fraction=0.3, test_fraction=0.3)
    prepare([source], tokenizer, out, **options)
    assert files_below(out) == files_below(whole.directory)


def test_masks_that_differ_make_other_data(prepared: TokenDataset, tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = [{"prompt": "a b", "completion": " c d"}] * 3, [{"prompt": "a", "completion": " b c d"}] * 3
    options: dict[str, Any] = {"val_fraction": 0, "test_fraction": 0, "format": "chat"}
    one, other = (
        prepare([jsonl(tmp_path / f"{n}.jsonl", rows)], tokenizer, tmp_path / str(n), **options)
        for n, rows in enumerate(pairs)
    )
    assert ids_of(one, "train") == ids_of(other, "train")
    assert one.fingerprint != other.fingerprint


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), r"train_000001\.mask: cannot be read \(No such file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"mask: 62 bytes, but 501 tokens need 63; "),
    "too long": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), r"mask: 64 bytes, but 501 tokens need 63; "),
    "changed": (
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        r"train_000001\.mask: changed since it was written \(SHA-256",
    ),
    "exchanged": (
        lambda path: shutil.copy(path.with_name("train_000000.mask"), path),
        r"train_000001\.mask: changed since it was written \(SHA-256",
    ),
    "unlisted": (
        lambda path: shutil.copy(path, path.with_name("train_000099.mask")),
        r"train_000099\.mask: not listed in the manifest; move it elsewhere",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_mask_is_refused(prepared: TokenDataset, case: str) -> None:
    damage, said = DAMAGE[case]
    damage(prepared.directory / "train_000001.mask")
    with pytest.raises(InputError, match=said) as caught:
        TokenDataset(prepared.directory).stream("train")
    assert "\n" not in str(caught.value)


def test_masks_are_imported_with_their_files(prepared: TokenDataset, tokenizer: Tokenizer) -> None:
    (prepared.directory / MANIFEST).unlink()
    again = import_shards(prepared.directory, tokenizer)
    assert {*again.manifest.shards} == {*prepared.manifest.shards}
    counted, expected = (next(data.stream("val").counted_blocks()).sum() for data in (again, prepared))
    assert counted == expected > 0
    (prepared.directory / MANIFEST).unlink()
    (prepared.directory / "train_000001.mask").unlink()
    with pytest.raises(InputError, match=r"train: some token files have a \.mask and others have none"):
        import_shards(prepared.directory, tokenizer)


def test_what_counts_is_shown(prepared: TokenDataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(prepared.directory), "--documents", "1"]) == 0
    said = capsys.readouterr().out
    stream = prepared.stream("train")
    counted = sum(int(block.sum()) for block in stream.counted_blocks())
    assert f"     {counted:,} of them count in the loss ({counted / len(stream):.1%})\n" in said
    ids, counts = next(documents_with_counts(stream, prepared.manifest.tokenizer.eot))
    assert f"train, document 1, {len(ids)} tokens, of which {counts.sum()} count in the loss:\n" in said
    shown = re.search(r"these count:\n(.*?)\n\n", said, re.DOTALL)
    assert (
        shown
        and shown[1].replace("|", "").replace("\\n", "").split()
        == prepared.tokenizer().decode(ids[counts].tolist()).split()
    )


def test_a_tokenizer_is_trained_on_the_text_of_conversations(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "chat.jsonl", [{"messages": SAID}] * 5)
    command = ["tokenizer", "train", "--input", source, "--vocab-size", "300", "--out", str(tmp_path / "tok")]
    assert main([*command, "--format", "chat"]) == 0
    whole = "".join(text for text, _ in spans_of({"messages": SAID}))
    assert Tokenizer.load(tmp_path / "tok").merges == Tokenizer.train([whole] * 5, 300).merges


def with_message(**message: Any) -> dict[str, Any]:
    return {"messages": [*SAID, message]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (5, r"line 2: is a number; a conversation is an object with messages, or with prompt and completion$"),
        ({"text": "x"}, r"line 2: has the keys text; a conversation is an object with messages, or with prompt and"),
        ({"prompt": "x"}, r"line 2: has the keys prompt; a conversation is"),
        ({"prompt": None, "completion": "x"}, r"line 2: prompt is null, not text; correct it$"),
        ({"prompt": "x", "completion": ["x"]}, r"line 2: completion is a list, not text"),
        (
            {"prompt": "x", "completion": ""},
            r"line 2: the completion is empty, so there is nothing to learn; remove it",
        ),
        ({"messages": {}}, r"line 2: messages is an object, not a list of objects with role and content$"),
        ({"messages": [5]}, r"line 2: messages\[0\] is not an object with role and content"),
        (with_message(role="user"), r"line 2: messages\[5\] is not an object with role and content"),
        (
            with_message(role="asistant", content=""),
            r'messages\[5\] has the role "asistant" \(did you mean "assistant"\?\)',
        ),
        (with_message(role=["user"], content=""), r"messages\[5\] has the role .*; roles are system, user, assistant$"),
        (with_message(role="assistant", content=None), r"line 2: messages\[5\]\.content is null, not text"),
        (with_message(role="user", content="\ud800"), r"line 2: half a surrogate pair at character 0"),
        (
            {"messages": [*SAID[:1], {"role": "assistant", "content": " "}]},
            r"messages\[1\] is an empty reply, from which",
        ),
        ({"messages": []}, r"line 2: the assistant says nothing, so there is nothing to learn; remove it$"),
        ({"messages": SAID[:2]}, r"line 2: the assistant says nothing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_line_that_is_no_conversation_is_told_why(tmp_path: Path, tokenizer: Tokenizer, row: Any, said: str) -> None:
    source = jsonl(tmp_path / "chat.jsonl", [{"messages": SAID}, row])
    with pytest.raises(InputError, match=said) as caught:
        prepare([source], tokenizer, tmp_path / "data", format="chat")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("sources", "options", "said"),
    [
        (
            ["chat.jsonl"],
            {},
            r"line 1: a conversation, not a text; prepare it with gpt2lab data prepare --format chat$",
        ),
        (["chat.jsonl"], {"format": "chats"}, r'unknown format "chats" \(did you mean "chat"\?\)'),
        (
            ["chat.jsonl"],
            {"format": "chat", "column": "messages"},
            r'column "messages" is given, but --format chat reads',
        ),
        (
            ["a.txt"],
            {"format": "chat"},
            r"a\.txt: --format chat reads \.jsonl and \.json files; convert it, or leave out",
        ),
        (["stories"], {"format": "chat"}, r"stories holds no conversations; leave out --format chat"),
        (["a.tar"], {"format": "chat"}, r"a\.tar/a\.txt: conversations are read from \.jsonl and \.json files"),
    ],
    ids=str,
)
def test_where_no_conversations_can_be_is_told_at_once(
    tmp_path: Path, tokenizer: Tokenizer, sources: list[str], options: dict[str, Any], said: str
) -> None:
    jsonl(tmp_path / "chat.jsonl", [{"messages": SAID}])
    write(tmp_path / "in" / "a.txt", "text")
    shutil.make_archive(str(tmp_path / "a"), "tar", tmp_path / "in")
    write(tmp_path / "a.txt", "text")
    paths = [source if source == "stories" else str(tmp_path / source) for source in sources]
    with pytest.raises(InputError, match=said) as caught:
        prepare(paths, tokenizer, tmp_path / "data", **options)
    assert "\n" not in str(caught.value)


def test_a_stream_of_conversations_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = jsonl(tmp_path / "chat.jsonl", [{"messages": SAID}] * 3)
    with pytest.raises(
        InputError, match="a conversation, not a text; prepare it with gpt2lab data prepare --format chat"
    ):
        StreamingDataset(source, tokenizer, tmp_path / "stream").held_out()


def test_files_with_other_lines_are_skipped_on_request(tmp_path: Path, tokenizer: Tokenizer) -> None:
    good = jsonl(tmp_path / "a.jsonl", some_rows(30))
    bad = jsonl(tmp_path / "b.jsonl", [{"messages": SAID}, {"text": "x"}])
    options: dict[str, Any] = {"format": "chat", "val_fraction": 0, "test_fraction": 0}
    found = prepare([good, bad], tokenizer, tmp_path / "both", on_error="skip", **options)
    assert list(found.manifest.left_out.skipped) == [bad]
    one = prepare([good], tokenizer, tmp_path / "one", **options)
    assert found.fingerprint == one.fingerprint
    names = [name for name in files_below(one.directory) if name != MANIFEST]
    assert {name: files_below(found.directory)[name] for name in names} == {
        name: files_below(one.directory)[name] for name in names
    }
