"""What `diagnose` returns: numbers about arrays, hints, and their text."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._calls import Call
from ._check import HostArray
from ._types import ArrayLike

Pitfall: TypeAlias = Literal[
    "softmax twice",
    "sigmoid twice",
    "column",
    "float classes",
    "class axis",
    "nothing counts",
    "one class",
    "out of range",
    "not finite",
    "zero gradient",
    "exploding gradient",
    "gradient not finite",
    "half precision",
    "refused",
]


@dataclass(frozen=True)
class Summary:
    """An array in numbers; `low`, `high` and `norm` are over its finite entries, NaN if it has none."""

    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    norm: float
    nan: int
    inf: int

    def __str__(self) -> str:
        size = int(np.prod(self.shape))
        text = f"{self.dtype}{list(self.shape)}  in [{self.low:.4g}, {self.high:.4g}]  norm {self.norm:.4g}"
        bad = ", ".join(f"{count} {word}" for count, word in ((self.nan, "NaN"), (self.inf, "inf")) if count)
        return f"{text}  {bad} of {size}" if bad else text


@dataclass(frozen=True)
class Hint:
    """One thing that is probably wrong: which, in which argument, and what to do about it."""

    pitfall: Pitfall
    argument: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.pitfall}: {self.text}"


@dataclass(frozen=True)
class Diagnosis:
    """What `jaxloss.diagnose` found out about one call of a loss.

    Attributes:
        loss: The name of the loss.
        arguments: A summary of each array argument.
        error: What the call raises, or None.
        value: A summary of what the call returns; of the numerator for "sum_and_weight".
        unreduced: A summary of the loss before its reduction, where the loss can give that.
        gradients: A summary of the gradient for each floating-point argument but the target.
        starts: Where NaN or inf first appears, such as "argument `input` at (2, 1)", or None.
        hints: What is probably wrong, none if all is well.
    """

    loss: str
    arguments: dict[str, Summary]
    error: str | None
    value: Summary | None
    unreduced: Summary | None
    gradients: dict[str, Summary]
    starts: str | None
    hints: tuple[Hint, ...]

    @property
    def pitfalls(self) -> frozenset[str]:
        """The names of the pitfalls that the hints are about."""
        return frozenset(hint.pitfall for hint in self.hints)

    def __str__(self) -> str:
        lines = [self.loss]
        lines += [f"  {name}: {summary}" for name, summary in self.arguments.items()]
        lines += [f"  raises {self.error}"] if self.error else []
        lines += [f"  loss: {self.value}"] if self.value else []
        lines += [f"  unreduced: {self.unreduced}"] if self.unreduced else []
        lines += [f"  gradient for {name}: {summary}" for name, summary in self.gradients.items()]
        lines += [f"  NaN or inf starts in {self.starts}"] if self.starts else []
        lines += [f"  ! {hint}" for hint in self.hints] or ["  nothing suspicious"]
        return "\n".join(lines)


@dataclass(frozen=True)
class Run:
    """A loss that was run: its arguments, and all that came out, in NumPy.

    `keep` says for each argument which entries count, and `findings` which of them are not what they must be.
    """

    arrays: dict[str, HostArray]
    call: Call | None
    value: HostArray
    unreduced: HostArray | None
    denominator: HostArray | None
    gradients: dict[str, HostArray]
    wide_gradients: dict[str, HostArray]
    keep: dict[str, HostArray]
    findings: tuple[tuple[str, str, HostArray], ...]

    def counted(self, argument: str) -> HostArray:
        """Which entries of an argument count, all of them where nobody knows."""
        everything: HostArray = np.ones(self.arrays[argument].shape, bool)
        return self.keep.get(argument, everything)


def host(x: ArrayLike) -> HostArray:
    """An array as JAX would have it, in NumPy."""
    return np.asarray(jax.device_get(jnp.asarray(x)))


def is_half(x: HostArray) -> bool:
    """Whether it is of floating-point numbers of 16 bits or fewer."""
    return x.dtype.itemsize < 4 and jnp.issubdtype(x.dtype, jnp.floating)


def wide(x: HostArray) -> HostArray:
    """Half precision in float32, which NumPy can count in."""
    return x.astype(np.float32) if is_half(x) else x


def summary(x: HostArray) -> Summary:
    """The numbers of one array."""
    a = wide(x)
    finite = a[np.isfinite(a)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (np.nan, np.nan)
    norm = np.sqrt(np.square(finite).sum()) if finite.size else np.nan
    nan, inf = int(np.isnan(a).sum()), int(np.isinf(a).sum())
    return Summary(x.shape, str(x.dtype), float(low), float(high), float(norm), nan, inf)


def position(bad: HostArray) -> str | None:
    """The position of the first True, as "(2, 1)"."""
    found = np.argwhere(bad)
    return str(tuple(int(i) for i in found[0])) if len(found) else None
