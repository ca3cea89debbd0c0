"""A process that tokenizes for another one: chunks of records in, examples out.

    python -m sft_jax.data.tokenizing.worker

Started by workers.py, it speaks pickle over standard input and output. It is a program of its own, not a copy of the
process that started it: that one may run JAX, which does not survive a fork, or be a notebook without a main module.
"""

import os
import pickle
import signal
import sys

from sft_jax.data.tokenizing import tokenize_chunk


def main() -> None:
    """Answers until standard input ends, which it also does when the other process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that started this ends it
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads any more: end without a word
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    questions = sys.stdin.buffer
    renderer, max_example_tokens, template = pickle.load(questions)
    while True:
        try:
            chunk = pickle.load(questions)
        except EOFError:
            return
        try:
            answer = tokenize_chunk(chunk, renderer, max_example_tokens, template)
        except (ValueError, RuntimeError) as error:  # names its record; anything else ends this process
            answer = error
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
