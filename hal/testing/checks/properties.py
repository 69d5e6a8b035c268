"""Beyond named samples: random calls against the oracle, and laws that hold for all calls."""

from __future__ import annotations

import torch

from hal.testing.cases import case
from hal.testing.checks.check import Effort, check, each
from hal.testing.compare import assert_close
from hal.testing.outcome import NotApplicable, NotTried
from hal.testing.record import Sample
from hal.testing.subject import HOST, Subject, results

__all__: list[str] = []


def _right(subject: Subject, seed: int, drawn: Sample) -> None:
    with torch.inference_mode(seed % 2 == 1):  # As engines serve.
        got = results(subject.run(subject.flat(drawn)))
    want = results(subject.record.oracle(*drawn.args, **drawn.kwargs))
    for result, expected in zip(got, want, strict=True):
        gate = subject.record.gates.get(result.dtype, 0.0)
        assert_close(result.to(HOST), expected, gate)


@check("random")
def random(subject: Subject, effort: Effort) -> int:
    """Random calls are within tolerance of the oracle, half of them in inference mode."""
    drawn = ((seed, case(subject.op.name, seed)) for seed in range(effort.cases))
    taken = ((seed, call) for seed, call in drawn if subject.refusal(call) is None)
    count = each(taken, lambda one: _right(subject, *one), lambda one: f"seed {one[0]}")
    if not count:
        raise NotTried(f"the kernel refuses all {effort.cases} random calls")
    return count


@check("laws")
def laws(subject: Subject, effort: Effort) -> int:
    """What must hold between calls: equivariance, inverses, identities."""
    try:
        from hal.testing.laws import LAWS, Law, check_law
    except ModuleNotFoundError as error:
        raise NotTried(f"laws are drawn by hypothesis: {error}") from None
    about = [law for law in LAWS if subject.op.name in law.ops]
    if not about:
        raise NotApplicable("there is no law of this op")
    device, served = torch.device(str(subject.device)), list[int]()

    def holds(law: Law) -> None:
        served.append(check_law(law, examples=effort.examples, device=device))

    with subject.forced():
        each(about, holds, lambda law: law.name)
    if not any(served):
        raise NotTried("the kernel refuses what the laws are about")
    return sum(served)
