"""The part of the steps in which something has an effect, such as guidance or a control network."""


def is_in_range(step: int, n_steps: int, start: float, end: float) -> bool:
    """Return whether step `step` of `n_steps`, counted from 0, lies between two shares of them.

    As in diffusers, it does if start ≤ step/n and (step + 1)/n ≤ end.
    """
    return step / n_steps >= start and (step + 1) / n_steps <= end
