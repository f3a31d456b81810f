"""Translates by CTranslate2 in a process of its own; its arguments are MODEL THREADS.

Two runtimes of OpenMP in one process slow each other down, PyTorch's by a third even while the other is idle. Requests
(sources, options) come pickled through standard input, hypotheses with their scores go back through standard output; an
error goes back as a line of text.
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

    model, threads = sys.argv[1:]
    translator = ctranslate2.Translator(model, compute_type="float32", inter_threads=1, intra_threads=int(threads))
    answer: object = None
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        try:
            sources, options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            results = translator.translate_batch(sources, return_scores=True, **options)
            answer = [(result.hypotheses[0], result.scores[0]) for result in results]
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
