"""N-gram language models of a task's training targets, made where decoding asks for one: counting takes seconds."""

from __future__ import annotations

from typing import Any

from bench.preparation import PreparedData
from models.interface import UNK, Model, Options
from models.ngram import NgramModel


def give_language_model(model: Model, settings: Options, data: PreparedData) -> None:
    """Give `model` the language model that decoding with `settings` uses, if it uses one and has none of that order.

    It is counted from the training targets as they are, distilled or not the system; those with unknown words are
    left out.

    Raises:
        ValueError: the order is too high for the vocabulary.
    """
    order = settings.language_model_order()
    if not order or order in model.language_models:
        return
    pairs: list[Any] = [data.tokenizer.encode(example.target) for example in data.examples("train")]
    fitted = NgramModel.fit([ids for ids in pairs if UNK not in ids], order, data.data_spec.vocab_size)
    model.language_models[order] = fitted.to(next(model.parameters()).device)
