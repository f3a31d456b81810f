"""CTranslate2 (Klein et al. 2020), an engine in C++ for Transformer inference, in a process of its own."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from ctranslate2.specs import TransformerSpec
from torch import Tensor

from models.attention import Attention
from models.interface import BOS, EOS, UNK, Decoded
from models.layers import Layer, Stack
from models.peers.peer import BANNED, EncoderDecoder, Request, decoded

ENDED = "the process of CTranslate2 ended"


class CTranslate:
    """Our model as theirs, in float32; tokens are the ids, written as strings."""

    def __init__(self, model: EncoderDecoder) -> None:
        device = model.embedding.tokens.weight.device
        if device.type != "cpu":
            raise ValueError(f"engine ctranslate2 runs on the CPU here, not on {device}")
        first = model.decoder.layers[0]
        assert isinstance(first, Layer)
        layers = (len(model.encoder.stack.layers), len(model.decoder.layers))
        spec = TransformerSpec.from_config(layers, first.self_attention.heads, pre_norm=True)
        embedding = _array(model.embedding.tokens.weight)
        positions = _array(model.embedding.positions)
        spec.encoder.embeddings[0].weight = embedding
        spec.decoder.embeddings.weight = embedding
        spec.decoder.projection.weight = embedding
        spec.decoder.projection.bias = _array(model.output.get_buffer("ban").clamp(min=BANNED))
        for ours, theirs in ((model.encoder.stack, spec.encoder), (model.decoder, spec.decoder)):
            theirs.scale_embeddings = True
            theirs.position_encodings.encodings = positions
            _fill_stack(ours, theirs)
        self.symbols = [str(i) for i in range(len(embedding))]
        spec.register_source_vocabulary(self.symbols)
        spec.register_target_vocabulary(self.symbols)
        spec.config.unk_token = self.symbols[UNK]
        spec.config.bos_token = spec.config.decoder_start_token = self.symbols[BOS]
        spec.config.eos_token = self.symbols[EOS]
        with tempfile.TemporaryDirectory() as folder:
            spec.validate()
            spec.optimize()
            spec.save(folder)
            self.server = Server(folder, torch.get_num_threads())

    def decode(self, request: Request) -> Decoded:
        """Decode; a beam goes on to the model's own limit: what it finds must not depend on the others of the batch."""
        exact = request.exact_length()
        limit = request.longest if request.beam > 1 else int(request.limits.max())
        limit = limit if exact is None else exact
        lengths = request.src_len.tolist()
        sources = [[self.symbols[i] for i in row[:n]] for row, n in zip(request.src.tolist(), lengths, strict=True)]
        results = self.server.translate(
            sources,
            beam_size=request.beam,
            length_penalty=request.alpha if request.beam > 1 else 0,
            max_input_length=0,
            min_decoding_length=exact or 0,
            max_decoding_length=limit + 1,
        )
        outputs = [[int(token) for token in hypothesis] for hypothesis, _ in results]
        return decoded(outputs, [score for _, score in results], request)

    def close(self) -> None:
        """End the process."""
        self.server.close()


make = CTranslate


class Server:
    """The other process; it ends with this object."""

    def __init__(self, folder: str, threads: int) -> None:
        """Start it with the model in `folder`, which may be removed then."""
        command = [sys.executable, "-m", "models.peers.ctranslate_server", folder, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.close = weakref.finalize(self, _end, self.process)
        self._receive()

    def translate(self, sources: Sequence[Sequence[str]], **options: Any) -> list[tuple[list[str], float]]:
        """Return the best hypothesis of each source and its score; `options` are those of `translate_batch`.

        Raises:
            MemoryError: there is not enough of it.
            RuntimeError: the engine has failed, or its process has ended.
        """
        assert self.process.stdin is not None
        try:
            pickle.dump((sources, options), self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(ENDED) from None
        results: list[tuple[list[str], float]] = self._receive()
        return results

    def _receive(self) -> Any:
        assert self.process.stdout is not None
        try:
            answer = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise RuntimeError(ENDED) from None
        if isinstance(answer, str):
            raise (MemoryError if "memory" in answer else RuntimeError)(f"CTranslate2: {answer}")
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):  # what it did not read is lost
            pipe.close()


def _array(tensor: Tensor) -> np.ndarray:
    result: np.ndarray = tensor.detach().float().cpu().numpy()
    return result


def _fill_stack(ours: Stack, theirs: Any) -> None:
    _fill_norm(ours.final_norm, theirs.layer_norm)
    for a, b in zip(ours.layers, theirs.layer, strict=True):
        assert isinstance(a, Layer)
        joint = a.self_attention
        weight = torch.cat([joint.query.weight, joint.key_value.weight])
        _fill_linear(weight, torch.cat([joint.query.bias, joint.key_value.bias]), b.self_attention.linear[0])
        _fill_linear(joint.output.weight, joint.output.bias, b.self_attention.linear[1])
        _fill_norm(a.norm_self, b.self_attention.layer_norm)
        if a.cross_attention is not None:
            _fill_cross(a.cross_attention, b.attention)
            _fill_norm(a.norm_cross, b.attention.layer_norm)
        _fill_linear(a.feed_forward.inner.weight, a.feed_forward.inner.bias, b.ffn.linear_0)
        _fill_linear(a.feed_forward.outer.weight, a.feed_forward.outer.bias, b.ffn.linear_1)
        _fill_norm(a.norm_feed, b.ffn.layer_norm)


def _fill_cross(ours: Attention, theirs: Any) -> None:
    for layer, target in zip((ours.query, ours.key_value, ours.output), theirs.linear, strict=True):
        _fill_linear(layer.weight, layer.bias, target)


def _fill_norm(ours: Any, theirs: Any) -> None:
    theirs.gamma, theirs.beta = _array(ours.weight), _array(ours.bias)


def _fill_linear(weight: Tensor, bias: Tensor, theirs: Any) -> None:
    theirs.weight, theirs.bias = _array(weight), _array(bias)
