"""Kaldi's log-mel filterbank for one frame and one band at a time, from its definition."""

import math

import numpy as np

EPSILON = float(np.finfo(np.float32).eps)


def mel(hz):
    return 1127 * math.log(1 + hz / 700)


def frame_samples(waveform, start, length):
    """Return `length` samples from `start` on; beyond the ends the waveform is mirrored, the last sample twice."""
    samples = []
    for position in range(start, start + length):
        at = position
        while not 0 <= at < len(waveform):
            at = -at - 1 if at < 0 else 2 * len(waveform) - 1 - at
        samples.append(float(waveform[at]))
    return samples


def power_spectrum(samples):
    """Return |FFT|^2 of a frame without its DC offset, pre-emphasised, in a Povey window, padded to a power of two."""
    mean = sum(samples) / len(samples)
    x = [sample - mean for sample in samples]
    x = [x[0] - 0.97 * x[0]] + [x[i] - 0.97 * x[i - 1] for i in range(1, len(x))]
    window = [(0.5 - 0.5 * math.cos(2 * math.pi * i / (len(x) - 1))) ** 0.85 for i in range(len(x))]
    padded = 1 << (len(x) - 1).bit_length()
    return np.abs(np.fft.rfft(np.multiply(x, window), padded)) ** 2


def band_energy(power, sample_rate, lower, centre, upper):
    """Return the energy under the triangle with these corners on the mel scale; Nyquist itself never counts."""
    energy = 0.0
    lines = len(power) - 1
    for i in range(lines):
        at = mel(i * sample_rate / 2 / lines)
        if lower < at < upper:
            energy += power[i] * ((at - lower) / (centre - lower) if at <= centre else (upper - at) / (upper - centre))
    return energy


def log_mel(waveform, sample_rate, num_mels, length_ms, shift_ms, low_freq, high_freq):
    """Return features [frames][num_mels] of `waveform`; frame i is centred on (i + 1/2) shifts."""
    length, shift = int(sample_rate * length_ms / 1000), int(sample_rate * shift_ms / 1000)
    step = (mel(high_freq) - mel(low_freq)) / (num_mels + 1)
    corners = [mel(low_freq) + i * step for i in range(num_mels + 2)]
    frames = []
    for number in range(math.floor(len(waveform) / shift + 0.5)):
        start = shift * number + shift // 2 - length // 2
        power = power_spectrum(frame_samples(waveform, start, length))
        energies = [band_energy(power, sample_rate, *corners[i : i + 3]) for i in range(num_mels)]
        frames.append([math.log(max(energy, EPSILON)) for energy in energies])
    return np.array(frames).reshape(-1, num_mels)
