"""What the laboratory needs of a model, and the adapter that makes a class of the user's own into one.

    LanguageModel ─┬─ GPT         gpt.py
                   └─ OwnModel    the class that ``--model FILE:CLASS`` names

    CLASS(config)                        config: a `GPTConfig`, whose options the class reads by name
        .forward(tokens)                 tokens (B, T) -> logits (B, T, V), or of the last position (B, 1, V), and None
        .forward(tokens, targets)        targets (B, T) -> logits, and the mean loss in nats, shape ()

The states of an `OwnModel` are its logits, and its cache holds tokens: each pass computes the whole text again. Rows of
logits beyond the vocabulary are padding and are cut off. What is known of such a model is what it shows: `profile`
makes it on torch's meta device, where tensors have no values, and counts.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any, NamedTuple, Protocol

import numpy
import torch
import torch.nn.functional as F
from torch import nn

from gpt2lab.errors import InputError, did_you_mean
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.loss import IGNORE_INDEX
from gpt2lab.model.parts import blamed, find_part, make_part, moved

OPTIONS = frozenset(field.name for field in fields(GPTConfig))
_OF_DATACLASSES = frozenset({"__repr__", "__eq__", "__hash__"})
"""Methods that `dataclasses` writes, which read every option."""


class GPTOutput(NamedTuple):
    """Result of a forward pass."""

    logits: torch.Tensor | None
    """(B, T, V); with targets None, unless ``return_logits`` asks for them."""
    loss: torch.Tensor | None
    """Mean next-token loss in nats, fp32, shape (); None without targets."""


class Cache(Protocol):
    """What a model keeps of the tokens that it has read."""

    endless: bool
    """Whether it takes more positions than the context."""
    looks_ahead: bool
    """Whether earlier positions change with later ones: then it is valid for a single pass."""

    @property
    def length(self) -> int:
        """Number of positions."""
        ...

    def clear(self, dropped: int = 0) -> None:
        """Empty it; ``dropped`` positions were removed from the start of the rows."""

    def copy_rows(self, source: Any, rows: torch.Tensor) -> None:
        """Copy row ``rows[i]`` of ``source`` to row i and drop everything else."""


class LanguageModel(nn.Module):
    """A model of the next token: what training, sampling and evaluation use of it, and nothing else.

    Parameters are trained, clipped, saved and loaded by `torch.nn.Module`'s own methods.
    """

    config: GPTConfig
    added_loss: torch.Tensor
    """What the loss of the last pass holds besides the cross-entropy of the next token, without gradient, shape ()."""

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> GPTOutput:
        """Return the logits (B, T, V) of tokens (B, T), or the mean loss if targets (B, T) are given.

        The other arguments, as everywhere, are those of `GPT.forward`.
        """
        raise NotImplementedError

    def hidden(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: Any = None,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return states (B, T, ..) of tokens (B, T), which continue what the cache holds, for `head`."""
        raise NotImplementedError

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (.., V) of states (.., ..)."""
        raise NotImplementedError

    def token_losses(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss in nats, fp32, (B, L), of the last L positions of tokens (B, T), without gradients.

        ``targets`` (B, L), L at most T, are the tokens that follow those positions.
        """
        raise NotImplementedError

    def new_cache(self, batch: int, padding: torch.Tensor | None = None, room: int | None = None) -> Cache:
        """Return an empty cache for ``batch`` rows, the first ``padding`` (B,) positions of which are empty."""
        raise NotImplementedError

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers, which are compiled, sharded and recomputed one by one; their matrices are Muon's."""
        raise NotImplementedError

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        raise NotImplementedError

    def compile_parts(self, dynamic: bool | None = None) -> None:
        """Compile what training calls again and again: each block by itself; ``dynamic`` is that of `torch.compile`."""
        for block in self.blocks:
            block.compile(dynamic=dynamic)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the trained matrices of the blocks, in their order."""
        return _matrices(self.blocks)


def _matrices(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    every = dict.fromkeys(parameter for module in modules for parameter in module.parameters())
    return [parameter for parameter in every if parameter.dim() == 2 and parameter.requires_grad]


@contextmanager
def evaluating(model: nn.Module | Iterable[nn.Module]) -> Iterator[None]:
    """Put the model in evaluation mode inside the block; afterwards every module is in its previous mode.

    Walking through a model takes as long as some of its layers, so what is entered for each token gives a list of its
    modules instead.
    """
    modules = model.modules() if isinstance(model, nn.Module) else model
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


# A class of the user's own -------------------------------------------------------------------------------------------


class ReadConfig(GPTConfig):
    """A configuration that knows which of its options were read by name.

    What reads all of them, such as ``repr`` or `dataclasses.asdict`, does not count.
    """

    read: set[str]
    """The same for the copies that `dataclasses.replace` makes."""

    @classmethod
    def of(cls, config: GPTConfig) -> ReadConfig:
        """Return a configuration with the same values, of which nothing was read."""
        copy = object.__new__(type("ReadConfig", (cls,), {"read": set()}))
        vars(copy).update(vars(config))
        return copy

    def __post_init__(self) -> None:
        before = self.read.copy()
        super().__post_init__()
        self.read.intersection_update(before)

    def __getattribute__(self, name: str) -> Any:
        if name in OPTIONS:
            caller = sys._getframe(1)
            if caller.f_globals.get("__name__") != "dataclasses" and caller.f_code.co_name not in _OF_DATACLASSES:
                object.__getattribute__(self, "read").add(name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"config.{name} cannot be set; take dataclasses.replace(config, {name}=..)")

    def __copy__(self) -> ReadConfig:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadConfig:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        plain = object.__new__(GPTConfig)
        vars(plain).update(vars(self))
        return ReadConfig.of, (plain,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"config has no {name}{did_you_mean(name, OPTIONS)}; it has n_ctx, vocab_size, n_layer, n_head, n_embd, "
            "dropout, bias and the other options of --model (docs/own-model.md)"
        )


class TokenCache:
    """The cache of a model that keeps nothing: the tokens themselves."""

    endless = looks_ahead = False

    def __init__(self, tokens: torch.Tensor, padding: torch.Tensor | None) -> None:
        self.tokens, self.padding = tokens, padding
        """Tokens (B, S) read so far, and the number of empty positions before each row's first, (B,)."""

    @property
    def length(self) -> int:
        """Number of positions read so far."""
        return self.tokens.shape[1]

    def append(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add tokens (B, T); return all (B, S)."""
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        return self.tokens

    def clear(self, dropped: int = 0) -> None:
        """Forget the tokens; ``dropped`` positions were removed from the start of the rows."""
        self.tokens = self.tokens[:, :0]
        if self.padding is not None and dropped:
            self.padding = (self.padding - dropped).clamp(min=0)

    def copy_rows(self, source: TokenCache, rows: torch.Tensor) -> None:
        """Copy row ``rows[i]`` of ``source`` to row i and drop everything else."""
        self.tokens = source.tokens[rows]
        self.padding = None if source.padding is None else source.padding[rows]


class OwnModel(LanguageModel):
    """A class of the user's own, made from a configuration whose ``network`` names it.

    Its file need not know gpt2lab. The names in its ``state_dict`` are those of the class itself.

    Raises:
        InputError: The class is not known, cannot be made, or is not a module; or its forward pass fails, returns
            something else, NaN, or fewer logits than the vocabulary has, lets a position depend on later ones or a row
            on others, or does not reach every parameter that requires a gradient.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config.with_import()
        self.added_loss = torch.zeros((), device="cpu")
        self.key = ("network", str(self.config.network))
        self.part = find_part(self.key, self.config.import_sha256)
        self.asked = ReadConfig.of(self.config)
        """What the class was given: it tells which options were read."""
        self.network = make_part("network", self.asked)
        self.last_only = False
        """Whether the class, without targets, returns the logits of the last position only, as nanoGPT's does."""
        self.loss_is_cross_entropy = self.ignores_targets = True
        """Whether its loss is the mean cross-entropy of its logits, and leaves out targets of -100."""
        if next(self.parameters(), None) is None:
            raise self._error("has no parameters; register them as attributes, nn.Parameter or modules")
        if any(nn.parameter.is_lazy(parameter) for parameter in self.parameters()):
            raise self._error("has parameters without a shape; give it (nn.Linear, not nn.LazyLinear)")
        if self.device.type != "meta":
            _check(self)

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> GPTOutput:
        """Return the logits (B, T, V) of tokens (B, T), or the loss that the class returns for targets (B, T).

        Raises:
            InputError: Another argument is given, the class fails, or it returns something else.
        """
        self._refuse(mask=mask, documents=documents, positions=positions)
        if targets is None:
            return GPTOutput(self.hidden(tokens), None)
        return GPTOutput(None, self._loss(tokens, targets))

    def hidden(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: TokenCache | None = None,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits (B, T, V) of tokens (B, T), which continue those in the cache."""
        self._refuse(mask=mask, documents=documents, positions=positions)
        T, padding = tokens.shape[1], None
        if cache is not None:
            tokens, padding = cache.append(tokens), cache.padding
        S = tokens.shape[1]
        if self.config.n_ctx < S:
            raise InputError(f"{S} tokens exceed the model's context of {self.config.n_ctx}")
        if padding is None:
            return self._logits(tokens, T)
        # Each row begins with its first token and ends with its padding, on which nothing before it depends.
        order = torch.arange(S, device=tokens.device)
        rolled = tokens.gather(1, (order + padding[:, None]) % S)
        back = ((order - padding[:, None]) % S)[:, S - T :, None]
        return self._logits(rolled, S).gather(1, back.expand(-1, -1, self.config.vocab_size))

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (.., V), which the states are."""
        return x

    def token_losses(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the cross-entropy in nats, fp32, (B, L), of the last L positions of tokens (B, T)."""
        self._refuse(documents=documents, positions=positions)
        with torch.no_grad():
            logits = self._logits(tokens, targets.shape[1])
            rows = zip(logits, targets, strict=True)  # one by one: in fp32, all of them would take as much again
            return torch.stack([F.cross_entropy(row.float(), ids, reduction="none") for row, ids in rows])

    def new_cache(self, batch: int, padding: torch.Tensor | None = None, room: int | None = None) -> TokenCache:
        """Return an empty cache."""
        return TokenCache(torch.empty(batch, 0, dtype=torch.long, device=self.device), padding)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the class, if they are modules that are called."""
        return [layer for layer in self._layers() if type(layer).forward is not nn.Module.forward]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the trained matrices of the layers, whether they are called or only hold weights."""
        return _matrices(self._layers())

    def _layers(self) -> list[nn.Module]:
        """Return the entries of the outermost ``nn.ModuleList``, or alike, with n_layer entries; none without one.

        Numbered modules that are in no ``nn.ModuleList`` must be of one class: others are steps, not layers.
        """
        names, waiting = [str(number) for number in range(self.config.n_layer)], [self.network]
        for module in waiting:
            children = dict(module.named_children())
            entries = [*children.values()]
            if [*children] == names and (isinstance(module, nn.ModuleList) or len({*map(type, entries)}) == 1):
                return entries
            if not all(name.isdecimal() for name in children):
                waiting += entries
        return []

    @property
    def n_params(self) -> int:
        """Parameters as the class made them, a shared one counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return parameters, a shared one once, and buffers, in memory of their own: files hold no shared tensors."""
        distinct = {name for name, _ in self.network.named_parameters()}
        every = {name for name, _ in self.network.named_parameters(remove_duplicate=False)}
        values = self.network.state_dict(*args, **kwargs)
        return {n: v if n in distinct else v.clone() for n, v in values.items() if n in distinct or n not in every}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` returned."""
        if strict and (different := state_dict.keys() ^ self.state_dict().keys()):
            raise RuntimeError(f"names differ: {', '.join(sorted(different))}")
        return self.network.load_state_dict(state_dict, strict=False, assign=assign)

    def require_ignored_targets(self) -> None:
        """Raise `InputError` unless targets of -100, which do not count, do not count in the loss of the class."""
        if not self.ignores_targets:
            raise self._error(
                "counts targets of -100 in its loss, or fails on them: in this corpus they do not count; call "
                "F.cross_entropy with its ignore_index, -100"
            )

    def _refuse(self, **given: torch.Tensor | None) -> None:
        for name, value in given.items():
            if value is not None:
                raise self._error(f"takes tokens and targets only, not {name}")

    def _error(self, what: str) -> InputError:
        return InputError(f"model {self.key[1]} {what}")

    def _run(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[Any, Any]:
        """Return what the class returns for tokens and targets that it can view as it likes."""
        given = [tokens.contiguous()] + ([] if targets is None else [targets.contiguous()])
        with blamed(self.key, self.part):
            output = self.network(*given)
        if not isinstance(output, tuple) or len(output) != 2:
            returned = f"a tuple of {len(output)}" if isinstance(output, tuple) else _described(output)
            arguments = "tokens" if targets is None else "tokens, targets"
            raise self._error(f"returns {returned} from forward({arguments}); it must return (logits, loss)")
        return output

    def _logits(self, tokens: torch.Tensor, needed: int) -> torch.Tensor:
        """Return the logits (B, needed, V) of the last positions of tokens (B, T)."""
        (B, T), V = tokens.shape, self.config.vocab_size
        logits, _ = self._run(tokens, tokens if self.last_only and needed > 1 else None)
        shape = tuple(getattr(logits, "shape", ()))
        if len(shape) != 3 or shape[0] != B or shape[1] not in ((1, T) if needed == 1 else (T,)):
            raise self._error(
                f"returns logits of {_described(logits)} for tokens of shape {(B, T)}; they must be {(B, T, V)}, or "
                f"{(B, 1, V)} without targets"
            )
        if shape[2] < V:
            raise self._error(
                f"returns {shape[2]} logits for each position, fewer than the {V} entries of the vocabulary; make the "
                "output as wide as config.vocab_size"
            )
        return logits[:, shape[1] - needed :, :V]

    def _loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        _, loss = self._run(tokens, targets)
        if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.is_floating_point():
            raise self._error(f"returns a loss of {_described(loss)}; it must be a scalar, the mean over the targets")
        return loss


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        kind = "" if value.is_floating_point() else f" and dtype {value.dtype}"
        return f"shape {tuple(value.shape)}{kind}"
    return f"{value!r:.40}" if value is None or isinstance(value, int | float | str) else f"type {type(value).__name__}"


def _few_tokens(model: OwnModel, B: int = 2, T: int = 4) -> torch.Tensor:
    """Return tokens (B, T), T at most the context."""
    T = min(T, model.config.n_ctx)
    return torch.arange(B * T, device=model.device).view(B, T) % model.config.vocab_size


@contextmanager
def _untouched(model: OwnModel) -> Iterator[None]:
    """Let another instance of the class take the place of the model's own inside the block, in fp32.

    Whatever a pass changes, buffers or attributes, it changes there; later random numbers are as they would have been.
    """
    network, states = model.network, (random.getstate(), numpy.random.get_state())
    try:
        with torch.random.fork_rng([]), torch.autocast(model.device.type, enabled=False):
            model.network = make_part("network", model.asked).to(model.device)
            yield
    finally:
        model.network = network
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def _check(model: OwnModel) -> None:
    """Raise `InputError` unless a few tokens pass through the model as through a language model."""
    tokens = _few_tokens(model)
    with _untouched(model):
        with evaluating(model), torch.no_grad():
            _check_outputs(model, tokens)
            with moved(model):
                _check_dependencies(model, _few_tokens(model, T=32))
                model.loss_is_cross_entropy = _is_cross_entropy(model, tokens, tokens.roll(1))
                some = tokens.masked_fill(tokens % 2 == 0, IGNORE_INDEX)
                with suppress(InputError):  # an index of -100 is out of range
                    model.ignores_targets = False
                    model.ignores_targets = _is_cross_entropy(model, tokens, some)
        with torch.enable_grad():
            unused = _unused(model, 2) and _unused(model, 256)  # an expert may need more tokens
    if unused:
        raise model._error(
            f"does not use {unused[0]}: the loss has no gradient there; use it in forward, remove it, or set its "
            "requires_grad to False"
        )


def _check_outputs(model: OwnModel, tokens: torch.Tensor) -> None:
    """Raise `InputError` unless logits and loss are what they should be, and find out of which positions they are."""
    T = tokens.shape[1]
    logits, _ = model._run(tokens)
    model.last_only = T > 1 and tuple(getattr(logits, "shape", ()))[1:2] == (1,)
    for found in (model._logits(tokens, T), model._loss(tokens, tokens)):
        if not bool(found.isfinite().all()):
            raise model._error("returns NaN or infinity before it is trained; see its initial weights")


def _check_dependencies(model: OwnModel, tokens: torch.Tensor) -> None:
    """Raise `InputError` if the logits of a position depend on later tokens or on other rows."""
    T = tokens.shape[1]
    logits = model._logits(tokens, T)
    close = functools.partial(torch.allclose, rtol=1e-3, atol=1e-3 * float(logits.std()), equal_nan=True)
    for at in (T // 2, T - 1):
        changed = tokens.clone()
        changed[:, at] = (changed[:, at] + 1) % model.config.vocab_size
        if not close(logits[:, :at], model._logits(changed, T)[:, :at]):
            raise model._error("lets a position depend on later ones, which it is to predict: the loss would leak")
    if not close(logits[:1], model._logits(tokens[:1], T)):
        raise model._error("lets a row of the batch depend on the others; see how heads are split and joined")


def _is_cross_entropy(model: OwnModel, tokens: torch.Tensor, targets: torch.Tensor) -> bool:
    """Whether the loss is the mean cross-entropy of the logits, with or without those of the padding."""
    (full, loss), logits = model._run(tokens, targets), model._logits(tokens, tokens.shape[1])
    every = [logits] if full is None or full.shape[:2] != tokens.shape else [logits, full]
    expected = [F.cross_entropy(each.float().flatten(0, 1), targets.flatten()) for each in every]
    return any(torch.allclose(loss.float(), each, rtol=1e-3, atol=1e-4, equal_nan=True) for each in expected)


def _unused(model: OwnModel, rows: int) -> list[str]:
    """Return the names of the trained parameters that the loss of some rows has no gradient for."""
    tokens = _few_tokens(model, rows)
    trained = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
    loss = model._loss(tokens, tokens)
    if not trained or not loss.requires_grad:
        raise model._error("returns a loss without a gradient: it depends on no parameter that requires one")
    gradients = torch.autograd.grad(loss, [*trained.values()], allow_unused=True)
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]


class Profile(NamedTuple):
    """What is known of a class without training it."""

    n_params: int
    matrices: int
    """Parameters in the trained matrices of its blocks."""
    blocks: int
    read: frozenset[str]
    """The options of the configuration that it read while it was made and run."""
    saved: int
    """Bytes that a forward pass of one full context keeps for its backward pass, in fp32."""


def profile(config: GPTConfig) -> Profile:
    """Return what is known of the class that a configuration names.

    It is made and run on the meta device; a class that reads values there is made and run on the CPU.

    Raises:
        InputError: As `OwnModel`.
    """
    config = config.with_import()
    return _profile(find_part(("network", str(config.network)), config.import_sha256), config)


@functools.cache
def _profile(part: object, config: GPTConfig) -> Profile:
    """Do so once for each class: a notebook may redefine the one that the configuration names."""
    try:
        with torch.device("meta"):
            return _measured(config)
    except (InputError, RuntimeError):
        with torch.random.fork_rng([]):
            return _measured(config)


def _measured(config: GPTConfig) -> Profile:
    model, saved = OwnModel(config), list[torch.Tensor]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    tokens = torch.zeros(1, config.n_ctx, dtype=torch.long, device=model.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        model._loss(tokens, tokens)
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in saved)}
    kept = sum(size for storage, size in storages.items() if storage not in own)
    matrices = sum(parameter.numel() for parameter in model.hidden_matrices())
    return Profile(model.n_params, matrices, len(model.blocks), frozenset(model.asked.read), kept)
