"""Prediction of the target's length from the source, and what decoders that start from a canvas of that length share.

As in Ghazvininejad et al. 2019 the encoder has a dedicated extra position, whose final state classifies the length.
Lengths count target tokens without bos and eos; 0 is impossible.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import CanvasDecoder, Encoded, Memory, SourceEncoder, source_encoder
from models.fixed_length import LengthSettings
from models.interface import MASK, NUM_SPECIAL, DataSpec, Decoded, Model
from models.layers import BackboneConfig, Embedding, Stack, padding_mask
from models.linear import Linear
from models.output import OutputLayer


class LengthPredictor(nn.Module):
    """Encodes sources with the extra position, and classifies the length of their targets."""

    ban: Tensor

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.token = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.classifier = Linear(dim, max_length + 1)
        nn.init.normal_(self.classifier.weight, std=dim**-0.5)
        nn.init.zeros_(self.classifier.bias)
        ban = torch.zeros(max_length + 1)
        ban[0] = float("-inf")
        self.register_buffer("ban", ban, persistent=False)

    def encode(self, encoder: SourceEncoder, src: Tensor, src_len: Tensor) -> tuple[Encoded, Tensor]:
        """Return the encoded sources and log-probabilities of lengths [b, 1 + longest]."""
        source, summary = encoder.with_summary(src, src_len, self.token)
        logits = self.classifier(summary).float() + self.ban
        return source, logits.log_softmax(-1)

    def loss(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        """Return the summed cross-entropy of the true lengths [b]; sentences without tokens do not count."""
        target = lengths.clamp(max=self.max_length).masked_fill(lengths == 0, -100)
        return F.nll_loss(log_probs, target, reduction="sum", ignore_index=-100)

    def best(self, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the `count` most probable lengths [b, c] and their log-probabilities, best first.

        c is `count`, or the number of lengths there are if that is less.
        """
        values, lengths = log_probs[:, 1:].topk(min(count, self.max_length), dim=1)
        return lengths + 1, values

    def chosen(self, log_probs: Tensor, src_len: Tensor, settings: LengthSettings, count: int) -> Tensor:
        """Return the lengths to try [b, c]: the `count` best, or those of the sources [b] if the settings say so."""
        lengths, _ = self.best(log_probs, count)
        if not settings.fixed:
            return lengths
        return src_len.clamp(min=1, max=self.max_length)[:, None].expand_as(lengths)

    def log_probability(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        """Return the log-probabilities of lengths [n]; minus infinity for those that cannot be predicted.

        log_probs: [b, 1 + longest]; n is b, or a multiple of it: then n/b consecutive lengths belong to a source.
        """
        log_probs = log_probs.repeat_interleave(len(lengths) // max(len(log_probs), 1), dim=0)
        found = log_probs.gather(1, lengths.clamp(max=self.max_length)[:, None])[:, 0]
        return found.masked_fill(lengths > self.max_length, float("-inf"))


def best_candidates(tokens: Tensor, lengths: Tensor, scores: Tensor, iterations: Tensor, candidates: int) -> Decoded:
    """Keep the most probable canvas of each sentence: the highest mean log-probability over its real tokens.

    As in Ghazvininejad et al. 2019 the probability of the length itself has no say; among equals the first one wins.

    Args:
        tokens: [n, t], n = b x candidates; consecutive rows belong to one sentence.
        lengths: [n].
        scores: [n, t] log-probability of each token; what stands beyond the length does not count.
        iterations: [n]; a sentence waits for the slowest of its candidates.
        candidates: rows per sentence.
    """
    real = padding_mask(lengths, scores.shape[1])
    means = scores.masked_fill(~real, 0.0).sum(1) / lengths.clamp(min=1)
    rows = means.view(-1, candidates).argmax(1) + torch.arange(0, len(means), candidates, device=means.device)
    return Decoded(tokens[rows], lengths[rows], means[rows], iterations.view(-1, candidates).amax(1))


class CanvasModel(Model):
    """The network of a family that rewrites a canvas of predicted length: all symbols share one tied embedding.

    A family adds its objective and its decoder, and fields of its own to the backbone's configuration.
    """

    def __init__(self, config: BackboneConfig, data: DataSpec) -> None:
        super().__init__()
        c = config
        positions = max(data.source_tokens, data.max_target_length)
        self.embedding = Embedding(data.vocab_size, c.model_dim, positions, c.dropout)
        self.encoder = source_encoder(c, data, self.embedding)
        self.decoder = CanvasDecoder(self.embedding, Stack(c.decoder_layers, *c.layer_shape, cross=True))
        self.lengths = LengthPredictor(c.model_dim, data.max_target_length)
        self.output = OutputLayer(self.embedding.tokens.weight, banned=range(NUM_SPECIAL))

    def encode(self, src: Tensor, src_len: Tensor) -> tuple[Memory, Tensor]:
        """Encode sources; return what the decoder attends to and log-probabilities of lengths [b, 1 + longest]."""
        source, length_log_probs = self.lengths.encode(self.encoder, src, src_len)
        return self.decoder.remember(source), length_log_probs

    def states_at(self, masked: Tensor, tgt: Tensor, tgt_len: Tensor, memory: Memory) -> Tensor:
        """Return the states [m, d] of the m positions where masked [n, t] is True, their targets hidden by MASK.

        tgt: [n, t], of which the first tgt_len [n] are real; n is the b of `memory` or a multiple, as for the decoder.
        """
        states: Tensor = self.decoder(tgt.masked_fill(masked, MASK), tgt_len, memory)
        return states[masked]

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder's stack and the decoder's."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder.stack]}
