"""A listener without noise: the tone by its spectrum, key down where the envelope is above half, and a ruler."""

import numpy as np

# The code as a tree in level order, the root first: a dot goes to the left, a dash to the right, `_` is no character.
TREE = "_etianmsurwdkgohvf_l_pjbxcyzq__54_3___2_______16=/_____7___8_90"
SIX = {"..--..": "?", ".-.-.-": ".", "--..--": ","}


def character(signs):
    """The character that dots and dashes stand for."""
    if len(signs) == 6:
        return SIX[signs]
    node = 0
    for sign in signs:
        node = 2 * node + (1 if sign == "." else 2)
    return TREE[node]


def envelope(audio, sample_rate):
    """The strength of the strongest tone over time, by mixing it down to zero and averaging over about 8 ms."""
    bins = 2**18
    tone = np.argmax(np.abs(np.fft.rfft(audio, bins))) * sample_rate / bins
    mixed = audio * np.exp(-2j * np.pi * tone * np.arange(len(audio)) / sample_rate)
    width = round(0.008 * sample_rate)
    return np.abs(np.convolve(mixed, np.ones(width) / width, mode="same"))


def runs(audio, sample_rate):
    """Durations in seconds of key down and key up, in turns, from the first mark to the last, with silence around."""
    strength = envelope(audio, sample_rate)
    down = strength > 0.5 * np.quantile(strength, 0.95)
    return (np.diff(np.flatnonzero(np.diff(down))) / sample_rate).tolist()


def decode(audio, sample_rate):
    """The text of a message that is free of noise and jitter and has a dot or a gap within a character."""
    durations = runs(audio, sample_rate)
    dot = min(durations)
    text, signs = "", ""
    for index, seconds in enumerate(durations):
        units = seconds / dot
        if index % 2 == 0:
            signs += "." if units < 2 else "-"
        elif units > 2:
            text += character(signs) + (" " if units > 5 else "")
            signs = ""
    return text + character(signs)
