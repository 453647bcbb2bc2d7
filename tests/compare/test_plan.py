"""The runs that a comparison plans, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2lab.cli.arguments import parse
from gpt2lab.cli.main import main
from gpt2lab.compare.run import make_plan, parse_arms, parse_variations
from gpt2lab.training.config import TrainConfig, flags


@pytest.fixture
def compare(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run ``gpt2lab compare``; return its exit code and all that it printed."""

    def run(*words: str) -> tuple[int, str]:
        code = main(["compare", "--data", str(data), "--out", str(tmp_path / "out"), *words])
        return code, "".join(capsys.readouterr())

    return run


def test_dry_run_prints_commands_that_make_the_same_runs(
    data: Path, tmp_path: Path, compare: Callable[..., tuple[int, str]]
) -> None:
    vary = ["--base", "tiny", "--vary", "model.n-head=2,4", "--vary", "model.bias=true,false"]
    code, printed = compare(*vary, "--seeds", "2", "--steps", "9", "--seed", "5", "--dry-run")
    lines = printed.splitlines()
    assert code == 0 and len(lines) == 8 and not (tmp_path / "out").exists()
    plan = make_plan(
        TrainConfig(preset="tiny", data=data, steps=9, seed=5),
        {"model.n_head": [2, 4], "model.bias": [True, False]},
        2,
        tmp_path / "out",
    )
    assert [job.command for job in plan.jobs] == lines
    for job in plan.jobs:
        words = flags(job.config)
        preset = TrainConfig(preset=words[1]).filled_in()
        assert parse(TrainConfig, words[2:], "gpt2lab train", default=preset) == job.config


def test_presets_are_compared_each_with_its_own_defaults(compare: Callable[..., tuple[int, str]]) -> None:
    _, printed = compare("--vary", "preset=nano,tiny", "--seeds", "1", "--optim.lr", "0.003", "--dry-run")
    nano, tiny = printed.splitlines()
    assert "--preset nano" in nano and "preset=nano" in nano and "--optim.lr" not in nano
    assert "--preset tiny" in tiny and "--optim.lr 0.003" in tiny, "a given option applies to every preset"


def test_recipes_are_compared_on_the_same_preset(compare: Callable[..., tuple[int, str]]) -> None:
    words = ("--base", "tiny", "--vary", "recipe=gpt2,fast", "--seeds", "1", "--optim.lr", "0.001", "--dry-run")
    gpt2, fast = (line.split() for line in compare(*words)[1].splitlines())
    assert "recipe=gpt2/seed_1337" in gpt2[gpt2.index("--out") + 1] and "--recipe" not in gpt2
    assert fast[2:6] == ["--preset", "tiny", "--recipe", "fast"] and "--optim.muon-lr" not in fast
    assert "--optim.lr" in gpt2 and "--optim.lr" in fast, "a given option applies to every recipe"
    *_, printed = compare("--recipe", "fast", "--vary", "optim.schedule=linear,cosine", "--seeds", "1", "--dry-run")
    assert all("--recipe fast" in line for line in printed.splitlines())


def test_arms_of_several_changes_are_combined_with_varied_options(
    base: TrainConfig, tmp_path: Path, compare: Callable[..., tuple[int, str]]
) -> None:
    arms = ["baseline:", "window: model.mask=window model.window=8"]
    words = ["--arm", arms[0], "--arm", arms[1], "--vary", "model.n_head=2,1", "--seeds", "1", "--dry-run"]
    _, printed = compare(*words)
    found = [line.partition("--out ")[2].split("/")[-2] for line in printed.splitlines()]
    assert found == [f"{name},n_head={n}" for name in ("baseline", "window") for n in (2, 1)]
    plan = make_plan(base, {}, 1, tmp_path / "out", parse_arms(arms))
    models = [config.essentials().model for config in plan.arms.values()]
    assert [(model.mask, model.window) for model in models] == [("causal", None), ("window", 8)]


def test_values_are_parsed_as_their_types() -> None:
    given = ["a=1,2.5", "b=true,none", "c=rope,learned", "d=1e-3", "model.position=none,rope", "model.window=none,4"]
    given += ["grow_batch=off,0.5,0.25:0.5"]
    expected = {"a": [1, 2.5], "b": [True, None], "c": ["rope", "learned"], "d": [1e-3]}
    expected |= {"model.position": ["none", "rope"], "model.window": [None, 4]}
    expected |= {"grow_batch": ["off", "0.5", "0.25:0.5"]}
    assert parse_variations(given) == expected
    assert parse_arms(["without: model.position=none"]) == {"without": {"model.position": "none"}}


def test_runs_that_exist_are_referred_to_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs/a", "runs/b c", "--seeds", "2"]) == 2
    assert "to compare runs that exist: gpt2lab report runs/a 'runs/b c'" in capsys.readouterr().err


REFUSALS = {
    "--arm window": "is not NAME: OPTION=VALUE",
    "--arm window: model.window": "is not NAME: OPTION=VALUE",
    "--arm a: --arm a: model.n_head=1": "repeats a name or an option",
    "--arm a: model.n_head=1 model.n-head=2": "repeats a name or an option",
    "--arm a: --arm b: model.window=8": "mask causal has none",
    "--arm a: --arm b: model.n_kv=1": 'no option "model.n_kv" (did you mean',
    "--arm a: --arm b: seed=3": "seed cannot vary",
    "--arm a: --arm b: model.mask=bidirectional": "mask bidirectional",
    "--arm a: --arm b: model.n_head=1 --vary model.n_head=1,2": "remove it from one of them",
    "--arm a:": "nothing to compare",
    "--vary model.n_heads=2,4": 'no option "model.n_heads" (did you mean "model.n_head"?)',
    "--vary model.n_head=2,3": "model.n_head=3: n_embd 64 is not divisible by n_head 3",
    "--vary model.n_head=2,two": "model.n_head is 'two'; it must be an integer",
    "--vary model.n_head": "is not OPTION=VALUE,VALUE",
    "--vary model.n_head=2,2": "has a value twice",
    "--vary model.n_head=2 --vary model.n-head=4": "is given twice",
    "--vary model.n_head=2": "nothing to compare",
    "--vary model.n_head=2,4 --seeds 0": "seeds is 0",
    "--vary seed=1,2": "seed cannot vary: give the number of seeds with --seeds",
    "--vary preset=nano,nano": "preset has a value twice",
    "--vary recipe=gpt2,fast --recipe fast": "recipe is in --vary, and --recipe fast is given",
    "--vary recipe=fast,fast": "recipe has a value twice",
    "--vary recipe=gpt2,fst": 'unknown recipe "fst" (did you mean "fast"?)',
    "--arm a: --arm b: recipe=fast": "recipe cannot vary",
    "--recipe fast --vary optim.name=muon,adamw": "optim.muon_lr 0.02 with optim.name adamw",
    "--vary preset=nano,tine": 'unknown preset "tine" (did you mean "tiny"?)',
}


@pytest.mark.parametrize(("options", "message"), REFUSALS.items(), ids=REFUSALS)
def test_refusals(options: str, message: str, tmp_path: Path, compare: Callable[..., tuple[int, str]]) -> None:
    words = [word for option in options.split("--")[1:] for word in f"--{option.strip()}".split(" ", 1)]
    code, printed = compare(*words)
    assert code == 2 and message in printed
    assert not (tmp_path / "out").exists()
