"""Backends that are refused before they are asked anything."""

from __future__ import annotations

from hostile.record import Stranger

NOT = {"state": "failed"}
UNFIT = {"state": "incompatible"}
UNREAD = {"state": "incompatible", "imported": False}

IMPORTS = [
    Stranger("import_error", "import no_such_library", reason="No module named 'no_such_", **NOT),
    Stranger(
        "missing_so",
        "import ctypes; ctypes.CDLL('libnosuchvendor.so.1')",
        reason=r"^OSError: libnosuchvendor\.so\.1: cannot open shared object",
        **NOT,
    ),
    Stranger("syntax", "def half(:", reason=r"^SyntaxError: .*hal_syntax.py", **NOT),
    Stranger("exits", "raise SystemExit(3)", reason="^SystemExit: 3$", **NOT),
    Stranger(
        "base_exception",
        "class Odd(BaseException): pass\nraise Odd('as it is')",
        reason="^Odd: as it is$",
        **NOT,
    ),
    Stranger(
        "no_text",
        "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute",
        reason="^Mute: which has no text$",
        **NOT,
    ),
    Stranger(
        "exits_when_printed",
        "class Trap(Exception):\n    def __str__(self): raise SystemExit\nraise Trap",
        reason="^Trap: which has no text$",
        **NOT,
    ),
    Stranger(
        "text_is_no_text",
        "class Odd(Exception):\n    def __str__(self): return 7\nraise Odd",
        reason="^Odd: which has no text$",
        **NOT,
    ),
    Stranger(
        "recursion", "def f(): return f()\nf()", reason="^RecursionError: maximum recursion", **NOT
    ),
    Stranger("no_memory", "bytearray(2**62)", reason="^MemoryError$", **NOT),
    Stranger("no_module", value="hal_not_there", reason="No module named 'hal_not_there'", **NOT),
    Stranger(
        "no_attribute", value="hal_no_attribute:plugin", reason="no attribute 'plugin'", **NOT
    ),
    Stranger(
        "uses_hal",
        "hal.ops.silu_and_mul(torch.ones(1, 2))",
        reason="hal was asked, in the import of backend uses_hal, for what needs the result",
        **NOT,
    ),
    Stranger(
        "raising_property",
        "class Plugin:\n    @property\n    def backend(self): raise OSError('no driver')\n"
        "plugin = Plugin()",
        value="hal_raising_property:plugin",
        reason="^OSError: no driver$",
        **NOT,
    ),
]

STATEMENTS = [
    Stranger("no_backend", "del backend", reason="hal_no_backend has no hal.Backend", **UNFIT),
    Stranger("dict_backend", "backend = {'api': 1}", reason="no hal.Backend named", **UNFIT),
    Stranger(
        "newer_api",
        "backend = Backend(api=2)",
        reason="^written for plugin API 2; this hal has 1$",
        **UNFIT,
    ),
    Stranger(
        "text_api",
        "backend = Backend(api='1')",
        reason="^TypeError: 'api' must be <class 'int'>[^,]*$",
        **NOT,
    ),
    Stranger(
        "newer_torch",
        "backend = Backend(api=1, torch='>=99')",
        reason=r"^supports torch >=99; this is \d",
        **UNFIT,
    ),
    Stranger(
        "no_range",
        "backend = Backend(api=1, torch='the newest')",
        reason="^InvalidSpecifier: .*the newest",
        **NOT,
    ),
    Stranger(
        "lone_device",
        "backend = Backend(api=1, devices='cpu')",
        reason=r"^TypeError: devices must be a tuple .* \('cpu',\)$",
        **NOT,
    ),
    Stranger(
        "numbered_device",
        "backend = Backend(api=1, devices=('cuda:0',))",
        reason="^ValueError: devices must be torch's types of device, without an index",
        **NOT,
    ),
    Stranger(
        "unfit_hooks",
        "backend = Backend(api=2)\n@hookimpl\ndef rms_nrom(device): raise SystemExit",
        reason="^written for plugin API 2",
        **UNFIT,
    ),
]

METADATA = [
    Stranger(
        "newer_hal",
        metadata="Requires-Dist: Torch_HAL>=9",
        reason=r"^it requires Torch_HAL>=9; this is torch-hal \d",
        **UNREAD,
    ),
    Stranger(
        "requires_nonsense",
        metadata="Requires-Dist: torch-hal at least 1",
        reason="^its metadata has an invalid requirement: torch-hal at least 1$",
        **UNREAD,
    ),
    Stranger(
        "bad_marker",
        metadata="Requires-Dist: torch-hal; moon == 'full'",
        reason="^its metadata has an invalid requirement: torch-hal; moon",
        **UNREAD,
    ),
    Stranger(
        "no_reference",
        value="hal-dashed!",
        reason="^its entry point is 'hal-dashed!'; write module or module:object$",
        **UNREAD,
    ),
    Stranger(
        "native",
        distribution="hal-impostor",
        reason="^the name native is reserved for torch-hal$",
        **UNREAD,
    ),
    Stranger("nameless", metadata=b"Metadata-Version: 2.1\nVersion: 1.0\n"),
    Stranger(
        "unreadable",
        metadata=b"Metadata-Version: 2.1\nName: hal-unreadable\nSummary: \xff\n",
        reason="^its metadata cannot be read: 'utf-8' codec can't decode byte 0xff",
        **UNREAD,
    ),
    Stranger("two words", reason="^the name 'two words' must be of letters, digits", **UNREAD),
    Stranger("colon:ed", reason="^the name 'colon:ed' must be of letters, digits", **UNREAD),
    Stranger("umläut", reason="^the name 'umläut' must be of letters, digits", **UNREAD),
]

HOOKS = [
    Stranger(
        "misspelt",
        "@hookimpl\ndef rms_nrom(device): pass",
        reason="^PluginValidationError: unknown hook 'rms_nrom'",
        **NOT,
    ),
    Stranger(
        "other_parameters",
        "@hookimpl\ndef softmax(gadget): pass",
        reason=r"(?s)^PluginValidationError: .*softmax.*gadget",
        **NOT,
    ),
    Stranger(
        "wraps",
        "@hookimpl(wrapper=True)\ndef silu_and_mul(device):\n    return (yield)",
        reason="silu_and_mul wraps a hook; a backend answers for itself only",
        **NOT,
    ),
    Stranger(
        "wraps_as_of_old",
        "@hookimpl(hookwrapper=True)\ndef silu_and_mul(device):\n    yield",
        reason="silu_and_mul wraps a hook; a backend answers for itself only",
        **NOT,
    ),
    Stranger(
        "hook_twice",
        "@hookimpl\ndef softmax(device): pass\n"
        "@hookimpl(specname='softmax')\ndef other(device): pass",
        reason="softmax is implemented twice",
        **NOT,
    ),
]


def _sets(name: str, code: str, change: str) -> Stranger:
    return Stranger(name, code, reason=f"^while loading it changed torch's {change}$", **NOT)


SWITCHES = [
    _sets(
        "sets_dtype",
        "torch.set_default_dtype(torch.float64)",
        "default dtype from torch.float32 to torch.float64",
    ),
    _sets("sets_device", "torch.set_default_device('meta')", "default device from cpu to meta"),
    _sets("sets_grad", "torch.set_grad_enabled(False)", "grad mode from True to False"),
    _sets("sets_seed", "torch.manual_seed(7)", r"random seed from \d+ to 7"),
    _sets(
        "sets_deterministic",
        "torch.use_deterministic_algorithms(True)",
        "deterministic mode from 0 to 2",
    ),
    Stranger(
        "sets_and_raises",
        "torch.set_default_dtype(torch.float64)\nraise OSError('no driver')",
        reason="^OSError: no driver; while loading it changed torch's default dtype",
        **NOT,
    ),
    Stranger("draws", "torch.rand(3)"),
]

OVERRIDES = [
    Stranger(
        "overrides_torch",
        "library = torch.library.Library('aten', 'IMPL')\n"
        "library.impl('silu', lambda x: x.sigmoid() * x, 'CPU')",
        reason="^while loading it overrode aten::silu for CPU, until the process ends$",
        **NOT,
    ),
    Stranger(
        "overrides_hal",
        "library = torch.library.Library('hal', 'IMPL')\nlibrary.impl('silu_and_mul', good, 'CPU')",
        reason="^while loading it overrode hal::silu_and_mul, until the process ends$",
        **NOT,
    ),
]

STRANGERS = [*IMPORTS, *STATEMENTS, *METADATA, *HOOKS, *SWITCHES, *OVERRIDES]
