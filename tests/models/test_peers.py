"""Other engines with our weights: they must give our outputs and scores."""

import gc
import os
import signal

import pytest
import torch
from pydantic import ValidationError

from bench.batching import pad_sources
from bench.passes import observe
from bench.store import _module_code
from bench.workload import SourceBatch, System
from models.interface import EOS, NUM_SPECIAL
from models.peers.peer import Request, decoded
from models.transformer import Config, Settings
from tests.models.families import SPEC, SPEECH, VOCAB, build, pairs

PEERS = ["huggingface", "ctranslate2"]
BEAM = {"beam": 5, "length_penalty": "power", "alpha": 1.0}


@pytest.fixture(scope="module")
def model():
    """A model with opinions, whose outputs end now and then before their limit."""
    model = build("transformer", seed=3, encoder_layers=2, decoder_layers=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.8)
        model.output.ban[EOS] = 7.0  # eos ends some, not all
    yield model
    for peer in model.peers.values():
        peer.close()


@pytest.fixture(scope="module")
def sources():
    sources = [p.source for p in pairs(24, seed=9)]
    assert len({len(s) for s in sources}) > 3
    return pad_sources(sources)


@torch.inference_mode()
def decode(model, sources, **settings):
    result = model.decode(*sources, Settings(**settings))
    return [row[:n] for row, n in zip(result.tokens.tolist(), result.lengths.tolist(), strict=True)], result


@pytest.mark.parametrize("engine", PEERS)
@pytest.mark.parametrize("settings", [{}, {"length_ratio": 0.5, "length_extra": 1}], ids=["free", "limited"])
def test_greedy_search_gives_the_same_tokens(model, sources, engine, settings):
    ours, own = decode(model, sources, **settings)
    theirs, peer = decode(model, sources, engine=engine, **settings)
    assert theirs == ours
    assert torch.equal(peer.iterations, own.lengths + 1)
    limits = Settings(**settings).limits(sources[1], SPEC.max_target_length).tolist()
    ended = [len(row) < limit for row, limit in zip(ours, limits, strict=True)]
    assert {*ended} == {True, False}, "both kinds of end are compared"
    if engine == "ctranslate2" and not settings:
        free = torch.tensor(ended)
        torch.testing.assert_close(peer.scores[free], own.scores[free], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("engine", PEERS)
def test_beam_search_gives_the_same_scores(model, sources, engine):
    ours, own = decode(model, sources, **BEAM)
    theirs, peer = decode(model, sources, engine=engine, **BEAM)
    limits = Settings().limits(sources[1], SPEC.max_target_length).tolist()
    free = [len(row) < limit for row, limit in zip(ours, limits, strict=True)]
    assert sum(free) >= 8
    assert [row for row, yes in zip(theirs, free, strict=True) if yes] == [
        row for row, yes in zip(ours, free, strict=True) if yes
    ]
    torch.testing.assert_close(peer.scores[free], own.scores[free], atol=1e-3, rtol=0)
    assert ours != decode(model, sources)[0], "the beam made a difference"


@pytest.mark.parametrize("engine", PEERS)
def test_a_peer_is_made_once_and_emits_no_forbidden_symbol(model, sources, engine):
    first, _ = decode(model, sources, engine=engine)
    peer = model.peers[engine]
    assert decode(model, sources, engine=engine)[0] == first
    assert model.peers[engine] is peer
    assert all(NUM_SPECIAL <= token < VOCAB for row in first for token in row)


@pytest.mark.parametrize("engine", PEERS)
def test_passes_of_another_engine_are_unknown_not_none(model, sources, engine):
    batches = [SourceBatch(sources[0][:1, : sources[1][0]], sources[1][:1])]
    for settings, roles in (({}, {"encoder", "decoder"}), ({"engine": engine}, set())):
        with torch.inference_mode():
            observation = observe(System(model, Settings(**settings), [], SPEC, "cpu"), batches)
        assert observation.passes.keys() - {"companion"} == roles
        assert observation.iterations == [observation.tokens[0] + 1]


@pytest.mark.parametrize("engine", PEERS)
@pytest.mark.parametrize("settings", [{}, BEAM])
def test_outputs_as_long_as_their_sources(model, sources, engine, settings):
    src, _ = sources
    for length in (1, 5):
        equal = (src[:, :length].clamp(min=NUM_SPECIAL), torch.full((len(src),), length))
        ours, _ = decode(model, equal, output_length="source", **settings)
        theirs, _ = decode(model, equal, output_length="source", engine=engine, **settings)
        assert {len(row) for row in theirs} == {len(row) for row in ours} == {length}
        if not settings:
            assert theirs == ours


@pytest.mark.parametrize("engine", PEERS)
def test_other_engines_can_be_told_one_length_alone(model, sources, engine):
    with pytest.raises(ValueError, match="can be told one length a batch, and with output_length source it is"):
        decode(model, sources, output_length="source", engine=engine)


def test_an_output_is_cut_at_its_eos_and_its_limit():
    request = Request(torch.zeros(3, 1), torch.ones(3), torch.tensor([2, 5, 5]), 5, 1, 1.0)
    result = decoded([[7, 8, 9], [7, EOS, 9], []], [0.1, 0.2, 0.3], request)
    assert result.tokens.tolist() == [[7, 8], [7, 0], [0, 0]]
    assert result.lengths.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": True}, "engine ctranslate2 neither samples nor takes a draft"),
        ({"draft_tokens": 4}, "neither samples nor takes a draft"),
        ({"beam": 4}, "needs length_penalty power and stopping first_k, not gnmt and first_k"),
        ({**BEAM, "stopping": "exact"}, "not power and exact"),
    ],
)
def test_what_other_engines_do_not_do_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Settings(engine="ctranslate2", **settings)


def test_other_engines_know_the_pre_norm_transformer_alone():
    assert Settings(engine="huggingface").misfit(Config()) is None
    assert Settings().misfit(Config(norm="post")) is None
    for config in (Config(norm="post"), Config(convolution=3)):
        assert Settings(engine="huggingface").misfit(config) == "engine huggingface needs norm pre and no convolution"


def test_speech_is_refused():
    speech = build("transformer", data=SPEECH)
    assert Settings(engine="huggingface").unfit("speech") == "engine huggingface reads text"
    assert Settings(engine="huggingface").unfit("text") is None is Settings().unfit("speech")
    with pytest.raises(ValueError, match="engine huggingface reads text, not speech"):
        speech.decode(torch.zeros(1, 8, 6), torch.tensor([8]), Settings(engine="huggingface"))


@pytest.mark.parametrize("engine", PEERS)
@pytest.mark.parametrize("settings", [{}, BEAM], ids=["greedy", "beam"])
def test_what_a_peer_gives_does_not_depend_on_the_batch(model, sources, engine, settings):
    cut = {"engine": engine, "length_ratio": 0.5, "length_extra": 1, **settings}
    together, batch = decode(model, sources, **cut)
    for i in range(0, 24, 5):
        length = int(sources[1][i])
        alone, single = decode(model, (sources[0][i : i + 1, :length], sources[1][i : i + 1]), **cut)
        assert alone == [together[i]]
        if settings:
            torch.testing.assert_close(single.scores[0], batch.scores[i], atol=1e-4, rtol=1e-4)


def test_an_engine_is_no_part_of_the_model(model):
    """A change of an engine must not ask for training anew, and must ask for decoding anew."""
    assert not any("peers" in name for name in modules_of("models.transformer") - {"models.peers.peer"})
    for engine, server in (("huggingface", False), ("ctranslate2", True)):
        settings = Settings(engine=engine)
        assert settings.packages() == ({"huggingface": "transformers"}.get(engine, engine),)
        found = modules_of(*settings.modules())
        assert ("models.peers.ctranslate_server" in found) == server
    assert Settings().modules() == Settings().packages() == ()


def modules_of(*names):
    """Modules of ours that these import, themselves among them, as keys of artifacts see them."""
    seen, left = set(), list(names)
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += [n for n in _module_code(name, ("bench", "models"))[1] if n.startswith("models")]
    return seen


def test_an_error_in_the_other_process_is_told_and_the_next_request_is_answered(sources):
    model = build("transformer")
    expected, _ = decode(model, sources, engine="ctranslate2")
    server = model.peers["ctranslate2"].server
    with pytest.raises(RuntimeError, match=r"CTranslate2: ValueError: The beam size"):
        server.translate([["9"]], beam_size=0)
    assert decode(model, sources, engine="ctranslate2")[0] == expected
    model.peers["ctranslate2"].close()


def test_the_process_of_ctranslate2_ends_with_its_model(sources):
    model = build("transformer")
    decode(model, sources, engine="ctranslate2")
    process = model.peers["ctranslate2"].server.process
    assert process.poll() is None
    del model
    gc.collect()
    assert process.poll() is not None


def test_a_process_that_dies_is_reported(sources):
    model = build("transformer")
    decode(model, sources, engine="ctranslate2")
    server = model.peers["ctranslate2"].server
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    with pytest.raises(RuntimeError, match="process of CTranslate2 ended"):
        decode(model, sources, engine="ctranslate2")
    assert decode(model, sources, engine="ctranslate2")[0], "another one was started"
    model.peers["ctranslate2"].close()
