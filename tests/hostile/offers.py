"""Backends that load, and whose hooks then answer with what is no use, or not at all."""

from __future__ import annotations

from hostile.record import Stranger


def _hook(body: str, before: str = "") -> str:
    return f"{before}\n@hookimpl\ndef silu_and_mul(device):\n    {body}\n"


def _silent(name: str, body: str, problem: str, before: str = "") -> Stranger:
    """A hook that fails, which is what ``hal.explain`` gives as the reason."""
    question = f"refused('{name}')"
    return Stranger(name, _hook(body, before), problem=problem, question=question, answer=problem)


def _garbage(name: str, answer: str, shown: str, before: str = "") -> Stranger:
    problem = f"^silu_and_mul: answered with {shown}, not a hal.Kernel$"
    answered = rf"^\[.answered with {shown}, not a hal.Kernel.\]$"
    return Stranger(
        name, _hook(f"return {answer}", before), problem=problem, question=f"refused('{name}')",
        answer=answered,
    )  # fmt: skip


def _misfit(name: str, function: str, fault: str) -> Stranger:
    """A kernel whose function has another signature than the op."""
    source = _hook("return Kernel(fn=fn, name='k')", function)
    question = f"refused('{name}')"
    return Stranger(
        name, source, problem=f"^silu_and_mul: .*{fault}", question=question, answer=fault
    )


HOOKS = [
    _silent("hook_raises", "raise OSError('no device')", "silu_and_mul raised OSError: no device"),
    _silent("hook_exits", "raise SystemExit('bye')", "silu_and_mul raised SystemExit: bye"),
    _silent(
        "hook_recurses",
        "return hal.ops.silu_and_mul(torch.ones(1, 2))",
        "silu_and_mul raised BackendError: hal was asked, in silu_and_mul of backend hook_recurses",
    ),
    _silent(
        "hook_sets_seed",
        "torch.manual_seed(7); return Kernel(fn=good, name='k')",
        r"silu_and_mul changed torch's random seed from \d+ to 7",
    ),
    _silent(
        "hook_overrides",
        "library.impl('tanh', lambda x: x, 'CPU'); return Kernel(fn=good, name='k')",
        "silu_and_mul overrode aten::tanh for CPU, until the process ends",
        "library = torch.library.Library('aten', 'IMPL')",
    ),
    _silent(
        "unknown_trait",
        "return Kernel(fn=good, name='k', speedy=True)",
        "silu_and_mul raised TypeError: .*unexpected keyword argument 'speedy'",
    ),
    _silent(
        "trait_is_no_bool",
        "return Kernel(fn=good, name='k', graph_safe='yes')",
        "silu_and_mul raised TypeError: 'graph_safe' must be <class 'bool'>[^,]*$",
    ),
    _silent(
        "spaced_kernel",
        "return Kernel(fn=good, name='my kernel')",
        "silu_and_mul raised ValueError: 'name' must match regex .*'my kernel' doesn't",
    ),
    _silent(
        "no_function",
        "return Kernel(fn=None, name='k')",
        "silu_and_mul raised NotCallableError: 'fn' must be callable",
    ),
]

GARBAGE = [
    _garbage("answers_string", "'fast'", "'fast'"),
    _garbage("answers_number", "0", "0"),
    _garbage("answers_dict", "{'fn': good}", r"\{'fn': <function .*\}"),
    _garbage("answers_tensor", "torch.ones(2)", r"tensor\(\[1\., 1\.\]\)"),
    _garbage("answers_function", "good", "<function good?\\.\\.\\..*>"),
    _garbage("answers_class", "Kernel", "<class 'hal.op.Kernel'>"),
    _garbage("answers_generator", "(k for k in ())", "<generator .*>"),
    _garbage(
        "answers_mute",
        "Mute()",
        "a Mute",
        "class Mute:\n    def __repr__(self): raise SystemExit",
    ),
    _garbage(
        "answers_proxy",
        "Proxy()",
        "<hal_answers_.*>",
        "class Proxy:\n    @property\n    def __class__(self): raise RuntimeError('unbound')",
    ),
    Stranger(
        "answers_some",
        _hook("return [None, Kernel(fn=good, name='k')]"),
        problem="^silu_and_mul: answered with None, not a hal.Kernel$",
        question="served('answers_some')",
        answer="answers_some:k",
        chosen="answers_some:k",
    ),
]

SIGNATURES = [
    _misfit("arity", "def fn(x, y): pass", r"the signature of k is \(x, y\); the op's is \(x: "),
    _misfit("no_parameter", "def fn(): pass", r"the signature of k is \(\)"),
    _misfit("other_name", "def fn(input): pass", r"the signature of k is \(input\)"),
    _misfit("a_default", "def fn(x=None): pass", r"the signature of k is \(x=None\)"),
    _misfit("tensor_default", "def fn(x=torch.ones(2)): pass", r"the signature of k is \(x=tensor"),
    _misfit("keyword_only", "def fn(*, x): pass", r"the signature of k is \(\*, x\)"),
    _misfit("positional_only", "def fn(x, /): pass", r"the signature of k is \(x, /\)"),
    _misfit("variadic", "def fn(*args, **kwargs): pass", r"signature of k is \(\*args, \*\*kwarg"),
    _misfit("no_signature", "fn = torch.add", "the signature of k cannot be had: .*no signature"),
    _misfit(
        "odd_signature",
        "def fn(x): pass\nfn.__signature__ = 7",
        "the signature of k cannot be had: unexpected object 7 in __signature__",
    ),
    _misfit(
        "raising_signature",
        "class Lazy:\n    def __call__(self, x): pass\n    @property\n"
        "    def __signature__(self): raise SystemExit('not loaded')\nfn = Lazy()",
        "cannot be inspected: SystemExit: not loaded",
    ),
    Stranger(
        "wrong_defaults",
        "def fn(x, weight, eps=1e-5): pass\n@hookimpl\n"
        "def rms_norm(device): return Kernel(fn=fn, name='k')",
        problem=r"^rms_norm: the signature of k is \(x, weight, eps=1e-05\); .*= 1e-06",
        question="refused('wrong_defaults', 'rms_norm')",
        answer="eps=1e-05",
    ),
    Stranger(
        "default_of_other_type",
        "def fn(logits, *, temperature=torch.ones(2)): pass\n@hookimpl\n"
        "def softmax(device): return Kernel(fn=fn, name='k')",
        problem=r"^softmax: the signature of k is \(logits, \*, temperature=tensor.*= 1.0\)",
        question="refused('default_of_other_type', 'softmax')",
        answer="temperature=tensor",
    ),
    Stranger(
        "inplace_for_none",
        _hook("return Kernel(fn=good, inplace=good, name='k')"),
        problem="^silu_and_mul: k offers an in-place form; the op has none of its own$",
        question="refused('inplace_for_none')",
        answer="k offers an in-place form",
    ),
    Stranger(
        "inplace_arity",
        "def fn(x, residual, weight, eps=1e-6): pass\n@hookimpl\ndef fused_add_rms_norm(device):\n"
        "    return Kernel(fn=fn, inplace=good, name='k')",
        problem=r"^fused_add_rms_norm: the signature of k is \(x\); the op's is",
        question="refused('inplace_arity', 'fused_add_rms_norm')",
        answer=r"the signature of k is \(x\)",
    ),
    Stranger(
        "same_name",
        _hook("return [Kernel(fn=good, name='k'), Kernel(fn=good, name='k')]"),
        problem="^silu_and_mul: offers two kernels of the name k$",
        question="served('same_name:k'), refused('same_name')",
        answer=r"\[\['same_name:k'\], \['offers two kernels of the name k'\]\]",
        chosen="same_name:k",
    ),
]


def _claims(name: str, hook: str, problem: str, question: str, answer: str) -> Stranger:
    return Stranger(
        name, f"@hookimpl\ndef {hook}", problem=problem, question=question, answer=answer
    )


DEVICES = "[str(d) for d in hal.devices()]"
ABSENT = r"^hal_devices claims {}, on which this torch can place nothing$"
CAPABILITIES = "[hal.supports(c, 'cpu') for c in ('bf16', 'pdl')]"
REPAIRS = "hal.report('cpu').repairs"
REPAIR = "hal_repairs():\n    return [Repair('the fan', torch='>=2', needed={}, apply={})]"

CLAIMS = [
    _claims(
        "absent_device",
        "hal_devices(): return [Device('cuda', 99), Device('cpu', name='Mine')]",
        ABSENT.format("cuda:99"),
        f"{DEVICES}, hal.device('cpu').name",
        r"^\[\['cpu'\], 'Mine'\]$",
    ),
    _claims(
        "unheard_of",
        "hal_devices(): return [Device('toaster')]",
        ABSENT.format("toaster"),
        DEVICES,
        r"^\['cpu'\]$",
    ),
    _claims(
        "devices_raise",
        "hal_devices(): raise OSError('no driver')",
        "^hal_devices raised OSError: no driver$",
        DEVICES,
        r"^\['cpu'\]$",
    ),
    _claims(
        "device_names",
        "hal_devices(): return ['cuda:0']",
        "^hal_devices answered with 'cuda:0', not a hal.Device$",
        DEVICES,
        r"^\['cpu'\]$",
    ),
    Stranger(
        "no_devices",
        "@hookimpl\ndef hal_devices(): return 'there is no driver'",
        reason="^there is no driver$",
        question=DEVICES,
        answer=r"^\['cpu'\]$",
    ),
    _claims(
        "capability_names",
        "hal_capabilities(device): return {'pdl'}",
        "^hal_capabilities answered with 'pdl', not a hal.Capability$",
        CAPABILITIES,
        r"^\[True, False\]$",
    ),
    _claims(
        "capabilities_raise",
        "hal_capabilities(device): raise SystemExit",
        "^hal_capabilities raised SystemExit$",
        CAPABILITIES,
        r"^\[True, False\]$",
    ),
    _claims(
        "repair_raises",
        REPAIR.format("lambda: True", "lambda: 1 / 0"),
        "^repair the fan: ZeroDivisionError: division by zero$",
        REPAIRS,
        "'the fan': 'failed: ZeroDivisionError: division by zero'",
    ),
    _claims(
        "repair_in_vain",
        REPAIR.format("lambda: True", "lambda: None"),
        "^repair the fan: BackendError: it was applied without effect$",
        REPAIRS,
        "'the fan': 'failed: BackendError: it was applied without effect'",
    ),
    _claims(
        "repair_sets_dtype",
        REPAIR.format(
            "lambda: torch.get_default_dtype().itemsize == 4",
            "lambda: torch.set_default_dtype(torch.float64)",
        ),
        "^repair the fan: changed torch's default dtype from torch.float32 to torch.float64$",
        REPAIRS,
        "'the fan': \"failed: changed torch's default dtype",
    ),
    _claims(
        "repair_names",
        "hal_repairs(): return ['the fan']",
        "^hal_repairs answered with 'the fan', not a hal.Repair$",
        REPAIRS,
        r"^\{\}$",
    ),
]  # fmt: skip

STRANGERS = [*HOOKS, *GARBAGE, *SIGNATURES, *CLAIMS]
