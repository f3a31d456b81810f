"""`generate` of Hugging Face transformers, with M2M100: pre-norm, ReLU, sinusoids, scaled and tied embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    M2M100Config,
    M2M100ForConditionalGeneration,
)

from models.attention import Attention
from models.interface import BOS, EOS, PAD, Decoded
from models.layers import Layer, Stack, padding_mask
from models.peers.peer import BANNED, EncoderDecoder, Request, decoded

SYMBOLS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS}
"""What they call ours; a model is told, and each search again."""


class NotBefore(LogitsProcessor):  # type: ignore[misc]  # their types are not followed
    """Bans eos until a number of tokens is there: their own for that goes over all scores several times a step."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [n, v] of what follows input_ids [n, 1 + tokens]."""
        if input_ids.shape[1] <= self.length:
            scores[:, EOS] = float("-inf")
        return scores


class HuggingFace:
    """Our model as theirs. Symbols that are never emitted are banned by a bias of the output layer."""

    def __init__(self, model: EncoderDecoder) -> None:
        weight = nn.Parameter(model.embedding.tokens.weight.detach().clone())
        vocab_size, dim = weight.shape
        first = model.decoder.layers[0]
        assert isinstance(first, Layer)
        heads, hidden = first.self_attention.heads, first.feed_forward.inner.out_features
        config = M2M100Config(
            vocab_size=vocab_size,
            d_model=dim,
            max_position_embeddings=model.embedding.positions.shape[0],
            encoder_layers=len(model.encoder.stack.layers),
            decoder_layers=len(model.decoder.layers),
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=hidden,
            decoder_ffn_dim=hidden,
            activation_function="relu",
            scale_embedding=True,
            **SYMBOLS,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
        with torch.device(weight.device):
            peer = M2M100ForConditionalGeneration(config)
        peer.lm_head = nn.Linear(dim, vocab_size, device=weight.device)
        with torch.no_grad():
            for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"):
                peer.model.get_submodule(name).weight = weight
            peer.lm_head.weight = weight
            # Finite, for beam search adds it to sums that it compares.
            peer.lm_head.bias.copy_(model.output.get_buffer("ban").clamp(min=BANNED))
            for ours, theirs in ((model.encoder.stack, peer.model.encoder), (model.decoder, peer.model.decoder)):
                _copy_stack(ours, theirs)
                codes = torch.cat([model.embedding.positions.new_zeros(PAD + 1, dim), model.embedding.positions])
                theirs.embed_positions.weights = codes
        self.model = peer.eval()

    def decode(self, request: Request) -> Decoded:
        """Decode; greedy search gives no scores.

        A beam goes on to the model's own limit: what it finds must not depend on the others of the batch.
        """
        beam = request.beam > 1
        exact = request.exact_length()
        limit = request.longest if beam else int(request.limits.max())
        limit = limit if exact is None else exact
        config = GenerationConfig(
            num_beams=request.beam,
            do_sample=False,
            max_new_tokens=limit + 1,
            early_stopping=True if beam else None,
            length_penalty=request.alpha if beam else None,
            return_dict_in_generate=True,
            output_scores=beam,
            **SYMBOLS,
        )
        mask = padding_mask(request.src_len, request.src.shape[1]).long()
        longer = None if exact is None else LogitsProcessorList([NotBefore(exact)])
        result = self.model.generate(
            request.src, attention_mask=mask, generation_config=config, logits_processor=longer
        )
        scores = result.sequences_scores.tolist() if beam else [float("nan")] * len(request.src)
        return decoded(result.sequences[:, 1:].tolist(), scores, request)

    def close(self) -> None:
        """There is nothing but memory."""


make = HuggingFace


def _copy_stack(ours: Stack, theirs: Any) -> None:
    _copy(ours.final_norm, theirs.layer_norm)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert isinstance(a, Layer)
        _copy_attention(a.self_attention, b.self_attn)
        _copy(a.norm_self, b.self_attn_layer_norm)
        if a.cross_attention is not None:
            _copy_attention(a.cross_attention, b.encoder_attn)
            _copy(a.norm_cross, b.encoder_attn_layer_norm)
        _copy(a.feed_forward.inner, b.fc1)
        _copy(a.feed_forward.outer, b.fc2)
        _copy(a.norm_feed, b.final_layer_norm)


def _copy_attention(ours: Attention, theirs: Any) -> None:
    _copy(ours.query, theirs.q_proj)
    _copy(ours.output, theirs.out_proj)
    for layer, part in ((theirs.k_proj, 0), (theirs.v_proj, 1)):
        _set(layer, ours.key_value.weight.chunk(2)[part], ours.key_value.bias.chunk(2)[part])


def _copy(ours: Any, theirs: Any) -> None:
    _set(theirs, ours.weight, ours.bias)


def _set(theirs: Any, weight: Tensor, bias: Tensor) -> None:
    theirs.weight.copy_(weight)
    theirs.bias.copy_(bias)
