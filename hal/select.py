"""Choosing: from what backends offer and a caller wants to ordered candidates with reasons."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from hal.errors import BackendError, NoKernel
from hal.hardware import Device
from hal.offers import Offer, offers
from hal.op import Kernel, Op
from hal.plugins import REFERENCE, State, cause, registry, shown
from hal.policy import Entry, Policy

__all__ = [
    "CAPTURED",
    "Candidate",
    "Choice",
    "choose",
    "in_capture",
    "is_capturing",
    "reference",
    "require_chosen",
]

CAPTURED = Entry("trait", None, "graph_safe")
"""What a capture asks of each kernel."""


@attrs.frozen
class Candidate:
    """One line of an explanation.

    Attributes:
        backend: The backend that was asked.
        kernel: The kernel it offers; None if it offers none.
        reason: Why it was chosen, passed over or refused.
        chosen: Whether it serves the call.
        offered: The kernel itself; None if it is refused.
    """

    backend: str
    kernel: str | None
    reason: str
    chosen: bool = False
    offered: Kernel | None = attrs.field(default=None, repr=False, eq=False)

    def __str__(self) -> str:
        return self.backend if self.kernel is None else f"{self.backend}:{self.kernel}"


@attrs.frozen
class Choice:
    """The candidates for an op on a device, best first, and which of them serves."""

    op: str
    device: Device
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that serves, None if there is none."""
        return next((candidate for candidate in self.candidates if candidate.chosen), None)

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.device}"]
        width = max((len(str(candidate)) for candidate in self.candidates), default=0)
        for candidate in self.candidates:
            mark = "->" if candidate.chosen else "  "
            lines.append(f"  {mark} {candidate!s:<{width}}  {candidate.reason}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The choice as plain data."""
        shown = attrs.filters.exclude("offered")
        return {
            "op": self.op,
            "device": str(self.device),
            "chosen": str(self.chosen) if self.chosen else None,
            "candidates": [attrs.asdict(candidate, filter=shown) for candidate in self.candidates],
        }


_LACKS = "is not {}"
_ON_REQUEST = "on request only: {}"


def _refusal(offer: Offer, op: Op, policy: Policy, args: Sequence[Any] | None) -> str | None:
    """Why it may not serve: not offered, not forced, not named, a missing trait, a condition."""
    if offer.kernel is None:
        return offer.reason
    forced = policy.forced(op.name)
    if forced and not any(offer.matches(spec) for spec in forced):
        return f"{' or '.join(forced)} is forced"
    for trait in policy.traits():
        if not getattr(offer.kernel, trait):
            return _LACKS.format(trait)
    wish = None if _named(offer, op, policy) else offer.kernel.on_request
    if isinstance(wish, str):
        return _ON_REQUEST.format(wish)
    if args is None:
        return None
    unable = offer.kernel.supports and _unmet(offer, offer.kernel.supports, op, args)
    if unable or wish is None:
        return unable
    unwanted = _unmet(offer, wish, op, args)
    return unwanted and _ON_REQUEST.format(unwanted)


def _named(offer: Offer, op: Op, policy: Policy) -> bool:
    """Whether this very kernel is forced or preferred, and not only its backend."""
    return offer.spec in (*policy.forced(op.name), *policy.preferred(op.name))


def _unmet(
    offer: Offer, condition: Callable[..., str | None], op: Op, args: Sequence[Any]
) -> str | None:
    """What a kernel's own condition says against these arguments; one that is broken refuses."""
    try:
        answer = op.call(condition, args)
        if answer is None or (isinstance(answer, str) and answer):
            return answer
        fault = f"answered with {shown(answer)}, neither None nor a reason"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # Another kernel may serve, as if this refused.
        fault = f"raised {cause(error)}"
    loaded = (p for p in registry().plugins if p.name == offer.backend and p.state is State.LOADED)
    for plugin in loaded:
        # Without the text, which may differ from call to call and pile up.
        brief, kernel = fault.partition(":")[0], offer.spec.partition(":")[2]
        registry().problem(plugin, f"{op.name}: the condition of {kernel} {brief}")
    return f"its condition {fault}"


def _rank(offer: Offer, op: Op, policy: Policy) -> tuple[int, ...]:
    """Forced and preferred specs in their order, then the order the offers are in."""

    def place(specs: tuple[str, ...]) -> int:
        return next((i for i, spec in enumerate(specs) if offer.matches(spec)), len(specs))

    return place(policy.forced(op.name)), place(policy.preferred(op.name))


def choose(op: Op, device: Device, policy: Policy, args: Sequence[Any] | None = None) -> Choice:
    """Take the first offer that may serve; without ``args``, conditions count as met."""
    candidates: list[Candidate] = []
    winner: str | None = None
    for offer in sorted(offers(op, device), key=lambda offer: _rank(offer, op, policy)):
        reason = _refusal(offer, op, policy, args)
        name = offer.kernel.name if offer.kernel else None
        offered = offer.kernel if reason is None else None
        taken = reason is None and winner is None
        if reason is None:
            reason = _merit(offer, op, policy, args) if taken else f"{winner} comes first"
        candidates.append(Candidate(offer.backend, name, reason, taken, offered))
        winner = str(candidates[-1]) if taken else winner
    return Choice(op.name, device, tuple(candidates))


def _merit(offer: Offer, op: Op, policy: Policy, args: Sequence[Any] | None) -> str:
    if any(offer.matches(spec) for spec in policy.forced(op.name)):
        why = "forced"
    elif any(offer.matches(spec) for spec in policy.preferred(op.name)):
        why = "preferred"
    else:
        why = ("third-party for this device", "for this device", "portable", "reference")[
            offer.band
        ]
    conditional = offer.kernel is not None and offer.kernel.conditional
    return f"{why}, if its condition holds" if conditional and args is None else why


def require_chosen(choice: Choice, op: Op) -> Candidate:
    """The chosen candidate; warns once for each accelerator that the reference serves by default.

    Raises:
        NoKernel: None may serve; with all reasons and what went wrong with backends.
        BackendError: A kernel was set aside and HAL_STRICT is set.
    """
    chosen = choice.chosen
    if chosen is None:
        why = f"{choice}{_advice(choice)}{registry().troubles(str(choice))}"
        raise NoKernel(f"no kernel can serve {why}")
    if choice.device.accelerator and chosen.reason == "reference":
        _warn_of_reference(op, choice)
    return chosen


def _advice(choice: Choice) -> str:
    """What helps where a kernel may not be captured."""
    lacks = _LACKS.format(CAPTURED.value)
    if all(candidate.reason != lacks for candidate in choice.candidates):
        return ""
    break_there = f"hal.graphs.breakable(..., at=[hal.ops.{choice.op}])"
    return (
        f"\na graph is captured here: keep {choice.op} out of it with {break_there}, or name "
        "another kernel with hal.use"
    )


def is_capturing(kind: str) -> bool:
    """Whether what is put on the current stream of a type of device goes into a graph."""
    asked = getattr(getattr(torch, kind, None), "is_current_stream_capturing", None)
    return asked is not None and asked()


def in_capture(policy: Policy, like: Tensor) -> Policy:
    """The policy to plan a call with: a capture, whoever makes it, takes what is safe there.

    It is asked for when a call is planned. A plan that was made before a capture of somebody else's
    is used in it as it is; ``hal.graphs`` states what it captures, and so has plans of its own.
    """
    if CAPTURED in policy.entries or not is_capturing(like.device.type):
        return policy
    return Policy((*policy.entries, CAPTURED))


# Devices of which it was said that the reference serves them.
_warned: set[Device] = set()


def _warn_of_reference(op: Op, choice: Choice) -> None:
    if choice.device not in _warned:
        _warned.add(choice.device)
        warnings.warn(
            f"the reference, which is slow, serves {op.name} on an accelerator, and maybe other "
            f"ops, which `hal report` lists:\n{choice}",
            stacklevel=2,
        )


def reference(op: Op, device: Device) -> Kernel:
    """The kernel that defines the op: its gradient, and what a compiler sees where it serves.

    Raises:
        BackendError: The reference is switched off or does not have the op.
    """
    for offer in offers(op, device):
        if offer.band == 3 and offer.kernel is not None:
            return offer.kernel
    raise BackendError(f"{op.name} needs its reference, which backend {REFERENCE} does not give")
