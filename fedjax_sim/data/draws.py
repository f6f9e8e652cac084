"""Random numbers of clients, and shares of a total, that repeat with their seed."""

import numpy as np


def apportion(log_weights: np.ndarray, total: int) -> np.ndarray:
    """Returns integers `[N]` that sum to `total`, proportional to `exp(log_weights)` up to rounding."""
    shares = np.cumsum(np.exp(log_weights - log_weights.max()))
    cuts = np.rint(shares / shares[-1] * total).astype(np.int64)
    return np.diff(cuts, prepend=0)


def log_gamma(generator: np.random.Generator, alpha: float, num_clients: int) -> np.ndarray:
    """Draws logarithms `[N]` of Gamma(alpha) variables, up to a common constant.

    Normalised, such draws are Dirichlet(alpha). Gamma(alpha) is Gamma(alpha + 1) times U^(1/alpha)
    with U uniform (Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS
    26(3), 2000, section 6). Without logarithms, draws underflow for small alpha and shares are 0/0.
    """
    minus_log_u = generator.standard_exponential(num_clients)
    # Relative to the smallest, so that at least one logarithm is finite for every alpha.
    log_boosts = -scaled(minus_log_u - minus_log_u.min(), 1 / max(alpha, np.finfo(float).tiny))
    return np.log(generator.standard_gamma(alpha + 1, num_clients)) + log_boosts


def scaled(values: np.ndarray, factor: float) -> np.ndarray:
    """Returns `values * factor`, which may be infinite."""
    with np.errstate(over="ignore"):
        return values * factor


def generator_of(seed: int) -> np.random.Generator:
    """Returns a generator whose numbers are the same with every version of NumPy."""
    # PCG64 by name: default_rng may change its algorithm between versions of NumPy.
    return np.random.Generator(np.random.PCG64(seed))
