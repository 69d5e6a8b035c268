"""Backends whose kernels break their promise once they are called."""

from __future__ import annotations

from hostile.record import Stranger

OFFER = "\n@hookimpl\ndef {}(device):\n    return Kernel(fn=fn, name='k'{})\n"
CALL = "under('{}', lambda: hal.ops.silu_and_mul(x()))"


def _gives(name: str, body: str, returned: str) -> Stranger:
    """A kernel with a wrong result, which is refused at each call and does not reach the caller."""
    refusal = f"^BackendError: silu_and_mul: {name}:k returned {returned}; declared is .1, 4. float"
    call = CALL.format(name)
    return Stranger(
        name,
        f"def fn(x): {body}" + OFFER.format("silu_and_mul", ""),
        question=f"[attempt({call!r}) for _ in range(3)][-1]",
        answer=refusal,
        chosen=refusal,
    )


FUSED = "under('{}', lambda: hal.ops.fused_add_rms_norm(x(), x(), torch.ones(8)))"


def _gives_for_two(name: str, body: str, returned: str) -> Stranger:
    return Stranger(
        name,
        f"def fn(x, residual, weight, eps=1e-6): {body}" + OFFER.format("fused_add_rms_norm", ""),
        question=FUSED.format(name),
        answer=f"^BackendError: fused_add_rms_norm: {name}:k returned {returned}; declared",
    )


def _aliases(name: str, body: str, returned: str) -> Stranger:
    """Results of which the caller would not expect that they change with an argument."""
    return Stranger(
        name,
        f"def fn(x, residual, weight, eps=1e-6): {body}" + OFFER.format("fused_add_rms_norm", ""),
        question=FUSED.format(name),
        answer=f"^BackendError: fused_add_rms_norm: {name}:k returned {returned}, not a new tensor",
    )


RESULTS = [
    _aliases("gives_argument", "return x.clone(), residual", "its argument residual"),
    _aliases("gives_view", "return x.view(1, 8), residual.clone()", "a view of its argument x"),
    _gives("gives_shape", "return x.clone()", r"\[1, 8\] float32 with strides \(8, 1\) on cpu"),
    _gives("gives_dtype", "return good(x).double()", r"\[1, 4\] float64 .*"),
    _gives(
        "gives_strides",
        "return torch.stack([good(x), good(x)], -1)[..., 0]",
        r"\[1, 4\] float32 with strides \(8, 2\) on cpu",
    ),
    _gives("gives_meta", "return good(x).to('meta')", r"\[1, 4\] float32 .* on meta"),
    _gives("gives_none", "pass", "None"),
    _gives("gives_list", "return [good(x)]", r"\[tensor.*\]"),
    _gives("gives_tuple_of_one", "return (good(x),)", r"a tuple of one, \[1, 4\] float32 .*"),
    _gives("gives_number", "return 7", "7"),
    _gives("gives_tuple", "return good(x), good(x)", r"\[1, 4\] .*, \[1, 4\] .*"),
    _gives_for_two(
        "one_for_two", "return x.clone()", r"\[1, 8\] float32 with strides \(8, 1\) on cpu"
    ),
    _gives_for_two(
        "tuple_of_one", "return (x.clone(),)", r"\[1, 8\] float32 with strides \(8, 1\) on cpu"
    ),
    _gives_for_two("none_for_one", "return x.clone(), None", r"\[1, 8\] .* on cpu, None"),
]


def _raises(name: str, when: str, count: int) -> Stranger:
    """A kernel that raises: the caller sees it, with a note, and no other backend is tried."""
    noted = (
        f"^ValueError: broken\nraised by {name}:k for hal.ops.silu_and_mul; HAL_DISABLE={name}:silu"
    )
    fn = f"calls = []\ndef fn(x):\n    calls.append(x)\n    if {when}: raise ValueError('broken')\n"
    call = CALL.format(name)
    return Stranger(
        name,
        fn + "    return good(x)" + OFFER.format("silu_and_mul", ""),
        question=f"[attempt({call!r}) for _ in range({count})][-1]",
        answer=noted,
        chosen=noted,
    )


RAISES = [
    _raises("raises_at_once", "True", 1),
    _raises("raises_again", "True", 3),
    # The second call is the first that no check and no plan precedes.
    _raises("raises_at_second", "len(calls) >= 2", 2),
    _raises("raises_at_fifth", "len(calls) >= 5", 5),
]


def _conditional(name: str, condition: str, fault: str, reason: str) -> Stranger:
    """A kernel whose condition is broken is passed over, as if it refused."""
    return Stranger(
        name,
        f"fn = good\n{condition}" + OFFER.format("silu_and_mul", ", supports=supports"),
        problem=f"^silu_and_mul: the condition of k {fault}$",
        question=f"served(), under('{name}', lambda: hal.ops.silu_and_mul(x()))",
        answer=f"(?s)NoKernel: .*{name}:k +its condition {reason}",
    )


CONDITIONS = [
    _conditional(
        "condition_raises",
        "def supports(x): raise OSError('no driver')",
        "raised OSError",
        "raised OSError: no driver",
    ),
    _conditional(
        "condition_exits",
        "def supports(x): raise SystemExit(1)",
        "raised SystemExit",
        "raised SystemExit: 1",
    ),
    _conditional(
        "condition_is_true",
        "def supports(x): return True",
        "answered with True, neither None nor a reason",
        "answered with True",
    ),
    _conditional(
        "condition_is_false",
        "def supports(x): return False",
        "answered with False, neither None nor a reason",
        "answered with False",
    ),
    _conditional(
        "condition_is_empty",
        "def supports(x): return ''",
        "answered with '', neither None nor a reason",
        "answered with ''",
    ),
    _conditional(
        "condition_arity",
        "def supports(): return None",
        "raised TypeError",
        "raised TypeError: .*takes 0 positional arguments",
    ),
]

QUIET = [
    Stranger(
        "prints",
        "print('loading')\ndef fn(x):\n    print('running')\n    return good(x)"
        + OFFER.format("silu_and_mul", ""),
        chosen="prints:k",
    ),
    Stranger(
        "starts_thread",
        "import threading\nthread = threading.Thread(target=threading.Event().wait, daemon=True)\n"
        "thread.start()\nfn = good" + OFFER.format("silu_and_mul", ""),
        question="sum(t.daemon for t in sys.modules['threading'].enumerate())",
        answer="^1$",
        chosen="starts_thread:k",
    ),
    Stranger(
        "asks_hal_in_thread",
        "import threading\nfound = []\n"
        "thread = threading.Thread(target=lambda: found.extend(hal.devices()))\n"
        "thread.start()\nfn = good" + OFFER.format("silu_and_mul", ""),
        question="(module := sys.modules['hal_asks_hal_in_thread']).thread.join(9), module.found",
        answer="type='cpu'",
        chosen="asks_hal_in_thread:k",
    ),
]

STRANGERS = [*RESULTS, *RAISES, *CONDITIONS, *QUIET]
