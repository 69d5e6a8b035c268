"""Backends as installed packages: their hooks, what is discovered, and what settings let in."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from hal.hookspecs import op_hooks
from hal.op import OPS
from hostile import OURS, Answers, Forks, Stranger, running

forks = pytest.fixture(running, scope="module")

OFFER = "print(__name__)\n@hookimpl\ndef {}(device): return Kernel(fn=good, name='k')\n"
ALPHA = Stranger("alpha", OFFER.format("silu_and_mul"))
BETA = Stranger("beta", OFFER.format("silu_and_mul"), distribution="Hal.Beta-Kernels")

STATES = "{b.name: b.state for b in hal.backends()}"
REASONS = "{b.name: b.reason for b in hal.backends()}"
MODULES = "sorted(name for name in sys.modules if name.startswith('hal_'))"


def ask(forks: Forks, site: Path, *strangers: Stranger, **questions: str) -> Answers:
    return forks.ask(site, strangers, questions)


ALL_HOOKS = Stranger(
    "acme",
    """
mended = []

@hookimpl
def hal_devices():
    return [Device("cpu", name="Acme 1", memory=2**30, accelerator=False)]

@hookimpl
def hal_capabilities(device):
    return {Capability.PDL} if device.name == "Acme 1" else ()

@hookimpl
def hal_repairs():
    fan = Repair("the fan", torch=">=2", needed=lambda: not mended, apply=lambda: mended.append(1))
    old = Repair("the lamp", torch="<2", needed=lambda: True, apply=lambda: 1 / 0)
    fine = Repair("the door", torch=">=2", needed=lambda: False, apply=lambda: 1 / 0)
    return fan, old, fine

@hookimpl
def silu_and_mul(device):
    return Kernel(fn=good, name="k") if device.type == "cpu" else None
""",
)


def test_the_four_hooks(forks: Forks, tmp_path: Path) -> None:
    answers = ask(
        forks,
        tmp_path,
        ALL_HOOKS,
        device="hal.device('cpu').to_dict()",
        repairs="hal.report('cpu').repairs",
        served="served()",
        problems="hal.report('cpu').problems",
    )
    assert (answers["device"]["name"], answers["device"]["memory"]) == ("Acme 1", 2**30)
    # What the reference states of the host stands beside it.
    assert {"pdl", "fake_kernels"} <= set(answers["device"]["capabilities"])
    assert answers["repairs"] == {
        "the fan": "applied",
        "the lamp": "not applied: for torch <2",
        "the door": "not needed: the fault is not there",
    }
    assert answers["served"] == ["acme:k"]
    assert answers["problems"] == []


def test_each_op_has_a_hook(forks: Forks, tmp_path: Path) -> None:
    assert set(vars(op_hooks())) == set(OPS)
    source = """
import hal_native
def offer(op):
    return hookimpl(lambda device: attrs.evolve(getattr(hal_native, op)(device), name="k"))
import attrs
from hal.op import OPS
globals().update({op: offer(op) for op in OPS})
"""
    serving = "{str(hal.explain(op).chosen) for op in OPS}"
    assert ask(forks, tmp_path, Stranger("acme", source), all=serving)["all"] == "{'acme:k'}"


def test_a_hook_takes_what_it_needs(forks: Forks, tmp_path: Path) -> None:
    source = "@hookimpl\ndef silu_and_mul(): return Kernel(fn=good, name='k')"
    assert ask(forks, tmp_path, Stranger("acme", source), s="served()")["s"] == ["acme:k"]


def test_a_hook_of_a_later_op_may_be_optional(forks: Forks, tmp_path: Path) -> None:
    source = "@hookimpl(optionalhook=True)\ndef op_of_the_future(device): pass"
    answers = ask(forks, tmp_path, Stranger("acme", source), states=STATES)
    assert answers["states"]["acme"] == "loaded"


def test_a_hook_is_asked_once_for_each_device(forks: Forks, tmp_path: Path) -> None:
    source = "asked = []\n@hookimpl\ndef silu_and_mul(device):\n    asked.append(device.type)"
    answers = ask(
        forks,
        tmp_path,
        Stranger("acme", source),
        calls="[served() for _ in range(3)]",
        explained="hal.explain('silu_and_mul', x().to('meta'))",
        asked="sys.modules['hal_acme'].asked",
    )
    assert answers["asked"] == ["cpu"]


def test_discovery_imports_nothing(forks: Forks, tmp_path: Path) -> None:
    answers = ask(
        forks,
        tmp_path,
        *(ALPHA, BETA),
        before=MODULES,
        discovered="{p.name: p.state.value for p in hal.plugins.registry().plugins}",
        between=MODULES,
        states=STATES,
        after=MODULES,
    )
    assert answers["before"] == answers["between"] == []
    assert answers["discovered"] == dict.fromkeys(("alpha", "beta", *OURS), "discovered")
    assert answers["states"] == {**OURS, "alpha": "loaded", "beta": "loaded"}
    assert {"hal_alpha", "hal_beta_kernels", "hal_native"} <= set(answers["after"])


def test_loaded_once_in_the_order_of_names(forks: Forks, tmp_path: Path) -> None:
    first = Stranger("aa", "print(__name__)", distribution="hal-zz")
    answers = ask(forks, tmp_path, BETA, ALPHA, first, served="served()", states=STATES)
    assert answers.stdout.split() == ["hal_zz", "hal_alpha", "hal_beta_kernels"]


@pytest.mark.parametrize(
    "metadata",
    [
        "Requires-Dist: torch-hal>=0.1",
        'Requires-Dist: torch-hal>=9; extra == "next"',
        'Requires-Dist: torch-hal>=9; python_version < "3"',
        "Requires-Dist: hal-vendor-library>=9",
    ],
)
def test_requirements_that_hold(forks: Forks, tmp_path: Path, metadata: str) -> None:
    acme = attrs.evolve(ALPHA, metadata=metadata)
    assert ask(forks, tmp_path, acme, served="served()")["served"] == ["alpha:k"]


NOT_ALLOWED, DENIED, SAFE = "not in HAL_PLUGINS", "denied by HAL_DISABLE", "HAL_SAFE is set"
BY_SETTINGS = [
    ({}, None, None),
    ({"HAL_PLUGINS": "alpha"}, None, NOT_ALLOWED),
    ({"HAL_PLUGINS": "hal_beta.kernels"}, NOT_ALLOWED, None),
    ({"HAL_PLUGINS": " alpha , beta "}, None, None),
    ({"HAL_PLUGINS": ""}, NOT_ALLOWED, NOT_ALLOWED),
    ({"HAL_DISABLE": "alpha"}, DENIED, None),
    ({"HAL_DISABLE": "HAL-BETA-KERNELS"}, None, DENIED),
    ({"HAL_DISABLE": "alpha,beta"}, DENIED, DENIED),
    ({"HAL_DISABLE": "alpha", "HAL_PLUGINS": "alpha"}, DENIED, NOT_ALLOWED),
    ({"HAL_DISABLE": "alpha:softmax"}, None, None),
    ({"HAL_SAFE": "0"}, None, None),
    ({"HAL_SAFE": "1"}, SAFE, SAFE),
    ({"HAL_SAFE": "1", "HAL_PLUGINS": "alpha"}, SAFE, SAFE),
]


@pytest.mark.parametrize(
    ("settings", "alpha", "beta"),
    BY_SETTINGS,
    ids=[" ".join(f"{k}={v}" for k, v in case[0].items()) or "unset" for case in BY_SETTINGS],
)
def test_allowed_and_denied(
    forks: Forks, tmp_path: Path, settings: dict[str, str], alpha: str | None, beta: str | None
) -> None:
    questions = {"states": STATES, "reasons": REASONS, "served": "served()", "modules": MODULES}
    answers = forks.ask(tmp_path, [ALPHA, BETA], questions, **settings)
    for stranger, reason in (ALPHA, alpha), (BETA, beta):
        assert answers["states"][stranger.name] == ("disabled" if reason else "loaded")
        assert answers["reasons"][stranger.name] == reason
        assert (stranger.module in answers["modules"]) is (reason is None)
    assert answers["states"]["native"] == "loaded"
    expected = "native:torch" if alpha and beta else "beta:k" if alpha else "alpha:k"
    assert answers["served"] == [expected]
    assert answers.stderr == ""


def test_the_reference_can_be_denied(forks: Forks, tmp_path: Path) -> None:
    questions = {"states": STATES, "served": "served()", "softmax": "hal.ops.softmax(x())"}
    answers = forks.ask(tmp_path, [ALPHA], questions, HAL_DISABLE="native")
    assert answers["states"] == {**OURS, "alpha": "loaded", "native": "disabled"}
    assert answers["served"] == ["alpha:k"]
    assert answers["softmax"].startswith("NoKernel: ")
    assert "disabled: denied by HAL_DISABLE" in answers["softmax"]


DENIED_OP = {
    "silu_and_mul": "refused('acme')",
    "asked": "sys.modules['hal_acme'].asked",
    "fused_add_rms_norm": "hal.explain('fused_add_rms_norm').chosen.backend",
}
TWO_OPS = Stranger(
    "acme",
    """
import hal_native
asked = []
@hookimpl
def silu_and_mul(device): asked.append("silu_and_mul")
@hookimpl
def fused_add_rms_norm(device): return hal_native.fused_add_rms_norm(device)
""",
)


@pytest.mark.parametrize(
    ("denied", "silu", "asked", "fused"),
    [
        ("", "offers no kernel here", ["silu_and_mul"], "acme"),
        ("acme:silu_and_mul", "denied for this op by HAL_DISABLE", [], "acme"),
        ("acme:fused_add_rms_norm", "offers no kernel here", ["silu_and_mul"], "native"),
        ("acme:fused_add_rms_norm_", "offers no kernel here", ["silu_and_mul"], "native"),
    ],
)
def test_denied_for_one_op(
    forks: Forks, tmp_path: Path, denied: str, silu: str, asked: list[str], fused: str
) -> None:
    answers = forks.ask(tmp_path, [TWO_OPS], DENIED_OP, HAL_DISABLE=denied)
    assert answers["silu_and_mul"] == [silu]
    assert answers["asked"] == asked
    assert answers["fused_add_rms_norm"] == fused
    assert answers.stderr == ""


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"HAL_DISABLE": "alpah"}, "HAL_DISABLE: there is no 'alpah' here; did you mean alpha?"),
        (
            {"HAL_DISABLE": "alpha:silu_and_mlu"},
            "no 'alpha:silu_and_mlu' here; did you mean alpha:silu_and_mul?",
        ),
        (
            {"HAL_PLUGINS": "zzz"},
            "HAL_PLUGINS: there is no 'zzz' here; found alpha, cuda, hal-alpha, ",
        ),
    ],
)
def test_unknown_words_warn(
    forks: Forks, tmp_path: Path, settings: dict[str, str], warning: str
) -> None:
    assert warning in forks.ask(tmp_path, [ALPHA], {"states": STATES}, **settings).stderr


TWINS = [
    Stranger("twin", OFFER.format("silu_and_mul"), distribution=f"hal-{which}")
    for which in ("one", "two")
]
BOTH = "[(b.distribution, b.state, b.reason) for b in hal.backends() if b.name == 'twin']"


def test_of_two_claimants_to_a_name_none_wins(forks: Forks, tmp_path: Path) -> None:
    answers = ask(forks, tmp_path, *TWINS, twins=BOTH, served="served()", modules=MODULES)
    advice = "claims the same name; deny one distribution in HAL_DISABLE"
    assert answers["twins"] == [
        ["hal-one", "incompatible", f"hal-two {advice}"],
        ["hal-two", "incompatible", f"hal-one {advice}"],
    ]
    assert answers["served"] == ["native:torch"]
    assert not {"hal_one", "hal_two"} & set(answers["modules"])


def test_the_user_picks_one_of_two_claimants(forks: Forks, tmp_path: Path) -> None:
    questions = {"twins": BOTH, "served": "served()"}
    answers = forks.ask(tmp_path, TWINS, questions, HAL_DISABLE="hal-one")
    assert answers["twins"] == [["hal-one", "disabled", DENIED], ["hal-two", "loaded", None]]
    assert answers["served"] == ["twin:k"]
