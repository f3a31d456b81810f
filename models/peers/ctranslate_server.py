"""Translates by CTranslate2 in a process of its own; its arguments are MODEL DEVICE INDEX THREADS.

Two runtimes of OpenMP in one process slow each other down, PyTorch's by a third even while the other is idle. Requests
(sources, options) come pickled through standard input, hypotheses with their scores go back through standard output.
"""

from __future__ import annotations

import os
import pickle
import sys


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not come between
    import ctranslate2

    model, device, index, threads = sys.argv[1:]
    translator = ctranslate2.Translator(
        model,
        device=device,
        device_index=int(index),
        compute_type="float32",
        inter_threads=1,
        intra_threads=int(threads),
    )
    pickle.dump(None, answers)
    answers.flush()
    while True:
        try:
            sources, options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        results = translator.translate_batch(sources, return_scores=True, **options)
        pickle.dump([(result.hypotheses[0], result.scores[0]) for result in results], answers)
        answers.flush()


if __name__ == "__main__":
    main()
