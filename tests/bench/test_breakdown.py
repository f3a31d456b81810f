"""The parts of decoding are told apart, add up, and leave the model as it was."""

import pytest
import torch

from bench.batching import pad_sources
from bench.breakdown import PARTS, Stopwatch, break_down, watched
from bench.workload import SourceBatch, System
from models.registry import built_in_families
from tests.models.families import SPEC, build, pairs


class Ticks:
    """A clock that advances by one nanosecond a look, and as told."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 1
        return self.now


def system_of(name, **settings):
    model = build(name)
    return System(model, built_in_families()[name].settings(**settings), [], SPEC, "cpu")


def batches():
    return [SourceBatch(*pad_sources([p.source for p in pairs(4, seed=1)]))]


@pytest.mark.parametrize("name", sorted(built_in_families()))
def test_every_family_spends_time_in_its_parts(name):
    system = system_of(name)
    before = [dict(vars(module)) for module in system.model.modules()]
    with torch.inference_mode():
        shares = break_down(system, batches(), Ticks(), lambda: None)
    assert set(shares) <= set(PARTS)
    assert sum(shares.values()) == pytest.approx(100)
    assert {"decoder", "output"} <= set(shares)
    assert ("encoder" in shares) == (name != "kermit"), "KERMIT has one stack for all"
    assert "companion" not in shares
    assert [dict(vars(module)) for module in system.model.modules()] == before, "wrappers must be gone"


def test_time_goes_to_the_outermost_part():
    system = system_of("transformer")
    clock = Ticks()
    stopwatch = Stopwatch(clock, lambda: None)

    def slow_down(module, name, ticks):
        work = getattr(module, name)

        def slowly(*args, **kwargs):
            clock.now += ticks
            return work(*args, **kwargs)

        vars(module)[name] = slowly

    slow_down(system.model.encoder.stack.final_norm, "forward", 10**6)  # the encoder's stack is a `Stack` too
    slow_down(system.model.decoder.final_norm, "forward", 1000)  # once a step
    with watched(system.model, stopwatch), torch.inference_mode():
        steps = int(system.decode(batches()[0]).iterations.max())
    assert 10**6 <= stopwatch.nanoseconds["encoder"] < 10**6 + 100
    assert 1000 * steps <= stopwatch.nanoseconds["decoder"] < 1100 * steps
    assert 0 < stopwatch.nanoseconds["output"] < 1000


def test_a_teacher_is_a_part_of_its_own():
    with torch.inference_mode():
        shares = break_down(system_of("fertility_nat", fertility="noisy", candidates=3), batches(), Ticks(), int)
    assert shares["companion"] > 0


def test_wrappers_go_away_after_an_error():
    system = system_of("ctc")
    with pytest.raises(RuntimeError), watched(system.model, Stopwatch(Ticks(), lambda: None)):
        raise RuntimeError
    assert not any(
        callable(value) and key == "forward" for m in system.model.modules() for key, value in vars(m).items()
    )


def test_a_model_of_other_blocks_has_no_parts():
    from tests.bench.scripted import Config, Reverser, Settings

    system = System(Reverser(Config(), None), Settings(), [], SPEC, "cpu")
    assert break_down(system, batches(), Ticks(), lambda: None) == {}
