"""The corruption of Lee et al. 2018 as the paper tells it: one position after the other, on a list."""


def corrupt(target, noise, tokens, rate):
    """Return the corrupted target; `noise` and `tokens` as `models.inat.corrupt` reads them."""
    out = list(target)
    for i, u in enumerate(noise[: len(out)]):
        last = i + 1 == len(out)
        if u < rate / 3:
            if not last:
                out[i + 1] = out[i]
        elif u < 2 * rate / 3:
            out[i] = tokens[i]
        elif u < rate and not last:
            out[i], out[i + 1] = out[i + 1], out[i]
    return out
