"""A backend of another distribution, installed from wheels beside hal, and what becomes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hal

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "hal-loopback"

# Says what hal makes of a few calls; each line of the report is asked for by a test.
CHILD = """
import json, sys
import torch, hal

def shown(choice):
    return {str(c): c.reason for c in choice.candidates} | {"chosen": str(choice.chosen)}

def attempt(call):
    try:
        with hal.trace() as records:
            call()
        return [f"{r.backend}:{r.kernel}" for r in records]
    except hal.HalError as error:
        return [type(error).__name__, str(error)]

x, row = torch.randn(3, 16), torch.ones(16)
said = {"file": hal.__file__}
said["norm"] = shown(hal.explain("rms_norm", x, row))
said["softmax"] = shown(hal.explain("softmax", x, temperature=torch.ones(3)))
said["ran"] = attempt(lambda: hal.ops.rms_norm(x, row))
said["fell"] = attempt(lambda: hal.ops.softmax(x.double()))
with hal.prefer("native"):
    said["preferred"] = attempt(lambda: hal.ops.rms_norm(x, row))
try:
    with hal.use("loopback"):
        said["forced"] = attempt(lambda: hal.ops.rms_norm(x, row))
        said["forced softmax"] = attempt(lambda: hal.ops.softmax(x.double()))
        said["forced other"] = attempt(lambda: hal.ops.layer_norm(x, None, None))
    with hal.use(softmax="loopback:torch"):
        said["forced kernel"] = attempt(lambda: hal.ops.softmax(x))
        said["not forced"] = attempt(lambda: hal.ops.layer_norm(x, None, None))
except hal.InvalidInput as error:
    said["unknown"] = str(error)
said["bf16"] = hal.supports("bf16", "cpu")
said["invariant"] = [
    r[4] for r in hal.report("cpu", ops=["silu_and_mul"]).rows()
]
said["imported"] = "hal_loopback" in sys.modules
said["backends"] = [b.to_dict() for b in hal.backends()]
print(json.dumps(said))
"""

SAME = """
import torch, hal
torch.manual_seed(0)
x, r, w = torch.randn(5, 24), torch.randn(5, 24), torch.rand(24)
lone = torch.full((1, 24), float("-inf"))
calls = {
    "silu_and_mul": [(x,), (x.bfloat16(),), (x.t()[:, :4],)],
    "rms_norm": [(x, None), (x, w, 1e-3), (x.half(), w.bfloat16()), (x.double(), w)],
    "fused_add_rms_norm": [(x, r, w), (x, r, w.double(), 0.1)],
    "softmax": [(x,), (torch.cat([x, lone]),)],
}
def close(a, b):
    for got, want in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,)):
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()
for name, cases in calls.items():
    for arguments in cases:
        results = []
        for backend in "loopback", "native":
            with hal.use(backend):
                results.append(getattr(hal.ops, name)(*arguments))
        close(*results)
with hal.use("loopback"):
    a, b = x.clone(), r.clone()
    assert hal.ops.fused_add_rms_norm_(a, b, w)[0] is a
close((a, b), hal.ops.fused_add_rms_norm(x, r, w))
y = x.clone().requires_grad_()
hal.ops.rms_norm(y, w).sum().backward()
assert hal.explain("rms_norm", x, w).chosen.backend == "loopback" and y.grad is not None
compiled = torch.compile(lambda x: hal.ops.rms_norm(x, w), backend="eager", fullgraph=True)
close(compiled(x), hal.ops.rms_norm(x, w))
"""


def run(*command: object, **options: Any) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def installed(where: Path, *sources: Path) -> Path:
    """A folder with ``sources`` installed from their wheels, as pip does it for a user."""
    wheels, site = where / "wheels", where / "site"
    for source in sources:
        run(
            sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, source
        )  # fmt: skip
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--no-compile", "--target", site, *sorted(wheels.glob("*.whl")), cwd=where)
    return site


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("alone"), ROOT)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, alone: Path) -> list[Path]:
    return [installed(tmp_path_factory.mktemp("beside"), EXAMPLE), alone]


def child(sites: list[Path], code: str = CHILD, **settings: str) -> str:
    """Run ``code`` where only ``sites`` have hal, for the editable one comes later on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    path = os.pathsep.join(map(str, sites))
    environment = kept | settings | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return run(sys.executable, "-W", "error", "-c", code, cwd=sites[0], env=environment)


def said(sites: list[Path], **settings: str) -> dict[str, Any]:
    answer = json.loads(child(sites, **settings))
    assert Path(answer["file"]).is_relative_to(sites[-1])
    return answer


@pytest.fixture(scope="module")
def plain(beside: list[Path]) -> dict[str, Any]:
    """What is said without a setting."""
    return said(beside)


def loopback(answer: dict[str, Any]) -> dict[str, Any]:
    (found,) = (each for each in answer["backends"] if each["name"] == "loopback")
    return found


# What the other backends of hal have for a host.
OTHERS = {
    "cuda": "serves cuda only",
    "musa": "serves musa only",
    "triton": "offers no kernel here",
}


def test_chosen_before_what_hal_ships(plain: dict[str, Any]) -> None:
    answer = plain
    assert answer["norm"] == {
        **OTHERS,
        "loopback:torch": "third-party for this device",
        "native:torch": "loopback:torch comes first",
        "chosen": "loopback:torch",
    }
    assert answer["ran"] == ["loopback:torch"]
    assert answer["preferred"] == ["native:torch"]
    assert answer["invariant"] == ["deterministic claimed, batch_invariant claimed"]
    assert loopback(answer) == {
        "name": "loopback",
        "distribution": "hal-loopback",
        "version": "0.1.0",
        "state": "loaded",
        "reason": None,
    }


def test_refused_for_its_reason(plain: dict[str, Any]) -> None:
    answer = plain
    assert answer["softmax"] == {
        **OTHERS,
        "loopback:torch": "temperature must be one number, not a tensor",
        "native:torch": "reference",
        "chosen": "native:torch",
    }
    assert answer["fell"] == ["native:torch"]


def test_forced_is_strict(plain: dict[str, Any]) -> None:
    answer = plain
    assert answer["forced"] == answer["forced kernel"] == ["loopback:torch"]
    assert answer["not forced"] == ["native:torch"]
    error, text = answer["forced softmax"]
    assert error == "NoKernel"
    assert "loopback:torch  logits must be float32" in text
    assert "native:torch    loopback is forced" in text
    error, text = answer["forced other"]
    assert error == "NoKernel"
    assert "loopback      offers no kernel here" in text


def test_computes_what_the_reference_does(beside: list[Path]) -> None:
    child(beside, SAME)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"HAL_DISABLE": "loopback"}, "denied by HAL_DISABLE"),
        ({"HAL_DISABLE": "Hal_Loopback", "HAL_PLUGINS": "loopback"}, "denied by HAL_DISABLE"),
        ({"HAL_SAFE": "1"}, "HAL_SAFE is set"),
        ({"HAL_PLUGINS": ""}, "not in HAL_PLUGINS"),
    ],
)
def test_denied(beside: list[Path], settings: dict[str, str], reason: str) -> None:
    answer = said(beside, **settings)
    assert loopback(answer)["state"] == "disabled"
    assert loopback(answer)["reason"] == reason
    assert answer["imported"] is False
    assert answer["ran"] == ["native:torch"]
    error, text = answer["forced"]
    assert error == "NoKernel"
    assert f"loopback      disabled: {reason}" in text


def test_denied_for_one_op(beside: list[Path]) -> None:
    answer = said(beside, HAL_DISABLE="loopback:rms_norm")
    assert answer["norm"]["loopback"] == "denied for this op by HAL_DISABLE"
    assert answer["ran"] == ["native:torch"]
    assert answer["forced kernel"] == ["loopback:torch"]
    assert loopback(answer)["state"] == "loaded"


def test_its_capability_stands_without_the_reference(beside: list[Path]) -> None:
    answer = said(beside, HAL_DISABLE="native")
    assert answer["bf16"] is True
    assert answer["ran"] == ["loopback:torch"]
    assert answer["fell"][0] == "NoKernel"


def test_gone(alone: Path) -> None:
    answer = said([alone])
    assert [each["name"] for each in answer["backends"]] == ["cuda", "musa", "native", "triton"]
    assert answer["norm"] == {**OTHERS, "native:torch": "reference", "chosen": "native:torch"}
    assert answer["unknown"] == "there is no backend 'loopback'; found cuda, musa, native, triton"


@pytest.mark.long
def test_it_passes_the_kit_from_its_own_distribution(beside: list[Path], tmp_path: Path) -> None:
    asked = ("loopback", "--output", tmp_path / "loopback.json")
    path = os.pathsep.join(map(str, beside))
    environment = {n: v for n, v in os.environ.items() if not n.startswith("HAL_")}
    said = run(
        *(sys.executable, "-m", "hal", "check", *asked),
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"},
    )
    assert "loopback on cpu" in said.splitlines()[-1]
    data = json.loads((tmp_path / "loopback.json").read_text(encoding="utf-8"))
    found = {(c["op"], c["check"]): c["status"] for c in data["cells"]}
    assert data["backend"]["distribution"] == "hal-loopback"
    assert "refuted" not in found.values()
    assert found["silu_and_mul", "invariance"] == found["softmax", "condition"] == "proven"
    proven = [op for op, check in found if check == "numerics"]
    assert proven == ["silu_and_mul", "rms_norm", "fused_add_rms_norm", "softmax"]


def test_the_readme_shows_what_the_module_says() -> None:
    module = (EXAMPLE / "src" / "hal_loopback" / "__init__.py").read_text()
    readme = (EXAMPLE / "README.md").read_text()
    assert 'backend = Backend(api=1, torch=">=2.7", devices=("cpu",))' in module
    assert 'backend = Backend(api=1, torch=">=2.7", devices=("cpu",))' in readme
    assert len(readme.splitlines()) <= 50
    assert hal.hookspecs.API == 1
