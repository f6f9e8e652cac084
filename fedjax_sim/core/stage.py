"""Stages: the links of a chain between a client's update and the server's step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


def _nothing(*_: Any) -> tuple[()]:
    return ()


def _accept(hparams: Mapping[str, float]) -> None:
    """Accepts all values."""


def _as_sent(sent: Any) -> Any:
    return sent


def _unchanged(state: Any, hparams: Any, own: Any, update: Any, key: Any) -> tuple[Any, Any, tuple[()]]:
    return update, own, ()


def _keep(state: Any, hparams: Any, asides: Any, count: Any) -> tuple[Any, dict[str, Any]]:
    return state, {}


class Stage(NamedTuple):
    """One link of a chain; by default each function changes nothing.

    A chain encodes from left to right on the client. The server decodes from right to left, sums, and
    calls `finish` and `advance` once a round.

    Attributes:
      name: for errors and settings.
      settings: name -> JSON value.
      hparams: name -> default value of what a sweep may vary.
      check: `check(hparams)`, raises ValueError for a value out of range.
      init: `init(hparams) -> state`, what the server keeps and every client receives.
      memory: `memory(params) -> own`, what ONE client remembers before it first takes part.
      encode: `encode(state, hparams, own, update, key) -> (sent, own, aside)`, for ONE client. `aside`
        is a pytree of booleans that the client sends beside the update.
      decode: `decode(sent) -> update`, for ONE client.
      finish: `finish(total, bound, hparams, key) -> total`, applied to the sum of all updates; `bound`
        is that of the last stage before it which has one. None for a stage that does not see the sum.
      advance: `advance(state, hparams, asides, count) -> (state, report)`; `asides` are sums, int32,
        over `count` `[]` int32 clients. `report` is a dict of scalars for the round's info.
      bound: `bound(state, hparams) -> []`, the largest L2 norm of an update that leaves this stage; None
        if there is none.
      keeps_bound: whether a bound of an earlier stage still holds after this one.
      is_encoder: whether it sends something other than an update.
      structured: a codec inside whose subspace clients train; the `state` of `encode` is then the PRNG
        key of ONE client's subspace. None for all other stages.
    """

    name: str
    settings: Mapping[str, Any]
    hparams: Mapping[str, float]
    check: Callable[[Mapping[str, float]], None] = _accept
    init: Callable[[Mapping[str, Any]], Any] = _nothing
    memory: Callable[[Any], Any] = _nothing
    encode: Callable[[Any, Any, Any, Any, Any], tuple[Any, Any, Any]] = _unchanged
    decode: Callable[[Any], Any] = _as_sent
    finish: Callable[[Any, Any, Any, Any], Any] | None = None
    advance: Callable[[Any, Any, Any, Any], tuple[Any, dict[str, Any]]] = _keep
    bound: Callable[[Any, Any], Any] | None = None
    keeps_bound: bool = False
    is_encoder: bool = False
    structured: Any = None
