"""Checks of a chain when it is built: which stages may follow which, and why not."""

from collections.abc import Sequence
from typing import Any

from fedjax_sim.aggregation.ends import End
from fedjax_sim.compression import Codec
from fedjax_sim.core.stage import Stage


def as_stages(given: Sequence[Any], end: Any) -> tuple[Stage, ...]:
    """Returns the stages of a chain that makes sense; codecs in a row become one.

    Raises:
      ValueError: something is no stage, or two stages do not go together; the error names both.
    """
    if not isinstance(end, End):
        raise ValueError(f"end is {_shown(end)}; wanted an end, such as fs.aggregation.mean()")
    merged: list[Any] = []
    for value in given:
        if isinstance(value, End):
            raise ValueError(
                f"the chain has two ends, {value.name} and {end.name}; wanted one, as "
                f"end={value.name}(...)"
            )
        if not isinstance(value, Stage | Codec):
            raise ValueError(
                f"{_shown(value)} is no stage; wanted one such as fs.aggregation.clip(1.0), or a codec"
            )
        if isinstance(value, Codec) and merged and isinstance(merged[-1], Codec):
            merged[-1] = merged[-1] >> value
        else:
            merged.append(value)
    stages = tuple(_of_codec(value) if isinstance(value, Codec) else value for value in merged)
    for i, stage in enumerate(stages):
        _check_order(stages[:i], stage)
    noise = [stage for stage in stages if stage.finish is not None]
    if noise and end.sees_clients:
        raise ValueError(
            f"{noise[0].name} and {end.name}: {noise[0].name} changes the sum of all updates, but "
            f"{end.name} takes them one by one; wanted end=mean(...)"
        )
    if noise:
        check_weighting(noise[0], end.weighting or "uniform")
    return stages


def check_weighting(noise: Stage, weighting: str) -> None:
    """Refuses example weights under a stage that changes the sum.

    Raises:
      ValueError: the weighting is not "uniform".
    """
    if weighting != "uniform":
        raise ValueError(
            f"{noise.name} and mean: {noise.name} bounds what one client adds to the sum, but "
            f"weighting={weighting!r} multiplies updates by unbounded weights; wanted mean('uniform')"
        )


def _check_order(before: Sequence[Stage], stage: Stage) -> None:
    """Refuses a stage that cannot follow those before it."""
    names = [other.name for other in before]
    if stage.name in names:
        raise ValueError(f"{stage.name} and {stage.name}: the chain has it twice; wanted it once")
    if stage.finish is not None:
        _check_bound(before, stage)
        return
    for other in before:
        if other.finish is not None:
            raise ValueError(
                f"{other.name} and {stage.name}: {other.name} changes the sum of all updates, and "
                f"{stage.name} after it would need each client's; wanted {stage.name} first"
            )
        if other.is_encoder:
            advice = (
                "one error_feedback around all codecs" if stage.is_encoder else f"{stage.name} first"
            )
            raise ValueError(
                f"{other.name} and {stage.name}: {other.name} encodes the update, and {stage.name} "
                f"after it would need the update itself; wanted {advice}"
            )


def _check_bound(before: Sequence[Stage], noise: Stage) -> None:
    """Refuses noise on updates without a bound."""
    for other in reversed(before):
        if other.bound is not None:
            return
        if not other.keeps_bound:
            raise ValueError(
                f"{other.name} and {noise.name}: after {other.name} no bound holds, so {noise.name} "
                "cannot hide a client's update; wanted a clip with nothing unbounded between the two"
            )
    raise ValueError(
        f"{noise.name} needs a bound on each update, and no clip comes before {noise.name}; wanted "
        "clip(norm) first"
    )


def _of_codec(codec: Codec) -> Stage:
    def encode(state, hparams, own, update, key):
        pattern = None if isinstance(state, tuple) else state
        return codec.encode(key, update, pattern), own, ()

    return Stage(
        codec.name,
        {"codec": codec.settings},
        {},
        encode=encode,
        decode=codec.decode,
        keeps_bound=codec.keeps_norm,
        is_encoder=True,
        structured=codec if codec.is_structured else None,
    )


def _shown(value: Any) -> str:
    return value.name if isinstance(value, Stage | Codec | End) else repr(value)
