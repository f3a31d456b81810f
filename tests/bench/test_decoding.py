import pytest
import torch

from bench.decoding import check_emitted, decode_batch, decode_corpus, sentences_of
from bench.steps import StepFailure
from models.interface import NUM_SPECIAL, SPECIAL_NAMES, DataSpec
from tests.bench.scripted import Config, Reverser, Settings

DATA = DataSpec(vocab_size=20, max_source_length=9, max_target_length=4)
SOURCES = [[7, 8, 9], [10], [19, 18, 17, 16], [11, 12]]


def reverser():
    return Reverser(Config(), DATA)


def test_outputs_come_in_the_order_of_the_sources():
    outputs = decode_corpus(reverser(), SOURCES, Settings(), DATA, 2, "float32")
    assert [output.tokens for output in outputs] == [source[::-1] for source in SOURCES]


@pytest.mark.parametrize("i", range(NUM_SPECIAL))
def test_a_special_symbol_is_no_target_token(i):
    with pytest.raises(
        StepFailure, match=rf"emitted id {i}, the special symbol {SPECIAL_NAMES[i]}; allowed are 7 to 19"
    ):
        check_emitted([[7, 19], [8, i]], DATA)


@pytest.mark.parametrize("i", [-1, 20, 1000])
def test_an_id_beyond_the_vocabulary_is_no_target_token(i):
    with pytest.raises(StepFailure, match=rf"emitted id {i}, none of the vocabulary's; allowed are 7 to 19"):
        check_emitted([[i]], DATA)


def test_an_output_is_no_longer_than_the_longest_target():
    check_emitted([[7] * 4, []], DATA)
    with pytest.raises(StepFailure, match="gave 5 tokens; no target has more than 4"):
        check_emitted([[7] * 5], DATA)


@pytest.mark.parametrize("source", [[7, 3], [7, 20], [7] * 5], ids=["unknown-word", "beyond", "too-long"])
def test_a_corpus_is_checked(source):
    with pytest.raises(StepFailure, match="the decoder"):
        decode_corpus(reverser(), [*SOURCES, source], Settings(), DATA, 2, "float32")


@pytest.mark.parametrize("length", [-1, 3])
def test_a_length_that_cannot_be_is_refused(length):
    tokens = torch.tensor([[7, 8], [9, 0]])
    assert sentences_of(tokens, torch.tensor([2, 1])) == [[7, 8], [9]]
    with pytest.raises(StepFailure, match=f"gave {length} as the length of an output of 2 tokens"):
        sentences_of(tokens, torch.tensor([2, length]))


def test_the_lengths_of_a_batch_are_checked():
    class Boaster(Reverser):
        def decode(self, src, src_len, settings):
            decoded = super().decode(src, src_len, settings)
            decoded.lengths += 1
            return decoded

    with pytest.raises(StepFailure, match="gave 3 as the length of an output of 2 tokens"):
        decode_batch(Boaster(Config(), DATA), [[7, 8]], Settings(), "float32")
