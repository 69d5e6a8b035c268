"""Functions cut at operators by torch.compile, of which each piece runs from graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_flatten

from hal.errors import HalError, InvalidInput
from hal.graphs.breaks import Kept, Recording, Warming, capturing
from hal.graphs.captured import Captured, Program
from hal.graphs.compiled import MISSED, Compiled
from hal.graphs.pads import Fill, Pad
from hal.graphs.players import Pieces, Recorder, Warmup, after
from hal.graphs.proofs import check_faked, check_repaired
from hal.graphs.stitch import Player, Stitched
from hal.graphs.task import Options, Task, captured
from hal.policy import op_names
from hal.query import trace

__all__ = ["piecewise"]


@attrs.frozen(eq=False)
class _Task(Task):
    """A function that is captured in pieces."""

    compiler: str = "eager"
    guards: bool = True
    compiled: list[Compiled] = attrs.Factory(list)

    def given(self) -> dict[str, Any]:
        """What the example has for the operators between pieces."""
        return {a.name: _plain(a.example) for a in self.arguments.each if a.kind == "eager"}

    def watch(self) -> int:
        """Also prove that it can be traced, and trace it for the largest bucket."""
        super().watch()
        who, bucket = self.arguments.who, self.buckets[-1]
        self.arguments.clear(bucket)
        check_repaired(who)
        with capturing(self.at, None):
            check_faked(self.fn, self.arguments, bucket)
        made = Compiled.of(self, self.compiler)
        self.compiled.append(made)
        made.trace(bucket, Warmup(self.given(), runs=False))
        return self._checked(made.stitched, who) + 1

    def check_breaks(self, seen: Warming) -> None:
        """What is traced shows it."""

    def _checked(self, stitched: Stitched, who: str) -> int:
        """How many operators there are between pieces."""
        if stitched.breaks is None:
            raise HalError(f"{who} was not traced: torch.compile is switched off")
        if not stitched.breaks:
            raise InvalidInput(f"{who} calls none of the ops at which it would be cut")
        for name, place in stitched.places.items():
            if place in stitched.reads:
                raise InvalidInput(
                    f"{who}: eager names {name}, which a piece takes, and not only ops at which it "
                    "is cut; leave it out of eager, or pass it to them as it is"
                )
        return stitched.breaks

    def play(self, bucket: int, player: Player) -> Any:
        """Call it for a bucket."""
        found = self.compiled[0].run(bucket, player)
        if found is MISSED:
            raise HalError(
                f"{self.arguments.who}: what torch.compile traced for {self.buckets[-1]} tokens "
                f"does not fit {bucket}: something in it goes by their number; give buckets of one "
                "kind, or use hal.graphs.breakable"
            )
        return found

    def warm(self, bucket: int) -> list[str]:
        """Run it twice for a bucket, and say what ran."""
        runs = self.fits(bucket)
        self.arguments.clear(bucket)
        self.play(bucket, Warmup(self.given(), runs))
        with trace() as records:
            self.play(bucket, Warmup(self.given(), runs))
        return [f"{record.op}: {record.backend}:{record.kernel}" for record in records]

    def program(self, bucket: int) -> Program:
        """Capture it for a bucket."""
        warming, kept = Warmup(self.given(), runs=False), Kept(self.maker.device)
        self.play(bucket, warming)
        recording = Recording(self.maker, {}, kept)
        recorder = Recorder(self.given(), warming.results, recording, kept)
        try:
            flat, spec = tree_flatten(self.play(bucket, recorder))
            recording.end()
        except BaseException:
            recording.abandon()
            raise
        results = tuple(map(kept.alias, flat))
        flat.clear()
        graphs = tuple(recording.graphs)
        follows = after(recorder, graphs, self.compiled[0].stitched)
        return Pieces(
            *(bucket, graphs, (), results, spec, tuple(kept.lasting()), self.compiled[0]),
            *(None if self.guards else recorder.flat, recorder.key, recorder.outputs, follows),
        )


def _plain(value: Any) -> Any:
    return value if isinstance(value, Tensor) else int(value)


def _names(at: Any) -> tuple[list[str], tuple[OpOverload, ...]]:
    """The names of hal's operators, and the operators of others."""
    given = at if isinstance(at, (list, tuple, set, frozenset)) else [at]
    others = tuple(op for op in given if isinstance(op, OpOverload))
    own = [op for op in given if not isinstance(op, OpOverload)]
    return op_names(own), others


def piecewise(
    module: Callable[..., Any],
    *example: Any,
    at: Any,
    eager: Sequence[str] = (),
    compiler: Literal["eager", "inductor"] = "eager",
    guards: bool = True,
    pad: Mapping[str, Fill | Pad] | None = None,
    buckets: Sequence[int] | None = None,
    copy: bool = True,
    pool: Any = None,
    progress: bool | None = None,
    group: Any = None,
) -> Captured:
    """Trace a module with torch.compile, cut it at some operators, and capture each piece.

    It does what ``breakable`` does, with the code of a compiler in the graphs, which is made once
    for any number of tokens. The operators between pieces run as they are called. What Python code
    decides is seen in each call, by the guards of torch.compile: where it would compile again, the
    module itself is called, and ``stats`` counts it.

    Args:
        module: A module or a function that torch.compile traces without a break.
        example: Its arguments, as for ``capture``.
        at: The operators, functions of ``hal.ops`` or names, which stand for their forms in place
            too; or of torch, each an ``OpOverload``, as it is called in the module; or one.
        eager: As for ``breakable``. Numbers are integers, on which no Python code branches: it is
            traced with others in their place.
        compiler: What makes the code of each piece: ``"eager"`` runs what was traced,
            ``"inductor"`` compiles it.
        guards: Whether each call checks the guards of torch.compile before the device has anything
            to do, which takes microseconds for each tensor that the module reads. Without them, as
            with ``capture`` and ``breakable``, what Python code decides stays as it was traced;
            that a tensor has been replaced by another is not seen either, only that it has moved.
        pad: As for ``capture``. What is given to the operators is padded.
        buckets: As for ``capture``, and of 2 tokens at least, since torch.compile takes a size of 1
            for a constant.
        copy: As for ``capture``.
        pool: As for ``capture``.
        progress: As for ``capture``.
        group: As for ``capture``.

    Raises:
        InvalidInput: As for ``breakable``.
        NoKernel: As for ``breakable``.
        HalError: Also if an operator has no fake kernel, FX's code finds no device, or what was
            traced does not fit every bucket.

    Example:
        >>> def norms(x, weight):
        ...     return hal.ops.rms_norm(hal.ops.silu_and_mul(x), weight) * 2
        >>> x, weight = torch.ones(8, 64, device="cuda"), torch.ones(32)  # doctest: +SKIP
        >>> fast = hal.graphs.piecewise(  # doctest: +SKIP
        ...     norms, x, weight.to(x.device), at=hal.ops.rms_norm, pad={"x": 0}
        ... )
        >>> fast(x[:5], weight.to(x.device)).shape  # doctest: +SKIP
        torch.Size([5, 32])
    """
    if compiler not in ("eager", "inductor"):
        raise InvalidInput(f"compiler is 'eager' or 'inductor', not {compiler!r}")
    own, others = _names(at)
    options = Options(tuple(own), eager, pad or {}, buckets, copy, pool, progress, group)
    make = functools.partial(_Task, others=others, compiler=compiler, guards=guards)
    return captured(module, example, options, make, least=2)
