"""``hal.report`` and ``hal.fingerprint``: the table of what serves, and its hash."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from typing import Any

import attrs
import torch

import hal
from hal.op import OPS
from hal.plugins import Plugin, State
from offering import ACME, NATIVE, backend, installed, kernel, refusing


def one(backend_name: str, kernel_name: str = "fast", **options: Any) -> Plugin:
    return backend(backend_name, softmax=kernel("softmax", kernel_name, **options))


def test_all_ops_on_all_devices() -> None:
    report = hal.report()
    pairs = [(choice.op, choice.device) for choice in report.choices]
    assert report.devices == tuple(hal.devices())
    assert pairs == [(op, device) for device in hal.devices() for op in OPS]


def test_it_is_what_explain_says() -> None:
    with hal.use("native"):
        for choice in hal.report("cpu").choices:
            assert choice == hal.explain(choice.op)


def test_a_choice_of_ops_each_once() -> None:
    ops = ["softmax", hal.ops.rms_norm, hal.ops.softmax, "fused_add_rms_norm_"]
    report = hal.report("cpu", ops=ops)
    assert [choice.op for choice in report.choices] == ["softmax", "rms_norm", "fused_add_rms_norm"]
    assert hal.report("cpu", ops="softmax") == hal.report("cpu", ops=[hal.ops.softmax])
    assert hal.report("cpu", ops=[]).choices == ()


def test_readable() -> None:
    broken = backend("broken")
    broken.refuse(State.FAILED, "ImportError: no libfast")
    fast = one("b", deterministic=True, pdl=True)
    fast.problems.append("softmax: takes long")
    with installed(fast, broken, NATIVE):
        report = hal.report(ACME, ops=["softmax", "layer_norm"])
        with hal.use("b"):
            forced = hal.report(ACME, ops=["layer_norm"])
    assert str(report).splitlines() == [
        "op          device  kernel        why                          claims",
        "softmax     acme:0  b:fast        third-party for this device  "
        "deterministic claimed, pdl claimed",
        "layer_norm  acme:0  native:torch  reference                    "
        "graph_safe claimed, deterministic claimed",
        "backend broken is failed: ImportError: no libfast",
        "problem: b: softmax: takes long",
    ]
    why = "offers no kernel here; failed: ImportError: no libfast; b is forced"
    assert forced.rows() == [("layer_norm", "acme:0", "none", why, "")]


def test_plain_data() -> None:
    plugin = one("b", pdl=True)
    plugin.repairs["views"] = "applied"
    plugin.problems.append("softmax: takes long")
    with installed(plugin, NATIVE):
        report = hal.report(ACME, ops=["softmax"])
    data = report.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["choices"] == [report.choices[0].to_dict() | {"traits": {"pdl": "claimed"}}]
    assert data["devices"] == [ACME.to_dict()]
    assert [info["name"] for info in data["backends"]] == ["b", "native"]
    assert data["repairs"] == {"views": "applied"}
    assert data["problems"] == ["b: softmax: takes long"]
    assert (data["hal"], data["torch"]) == (hal.__version__, torch.__version__)


def fingerprint(*plugins: Plugin, device: Any = ACME) -> str:
    with installed(*plugins):
        return hal.fingerprint(device)


def test_a_fingerprint_is_short_and_stable() -> None:
    found = hal.fingerprint()
    assert re.fullmatch(r"[0-9a-f]{16}", found)
    assert hal.fingerprint() == found
    assert fingerprint(one("b"), NATIVE) == fingerprint(one("b"), NATIVE)


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = "import hal; print(hal.fingerprint(), hal.fingerprint('cpu'))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=kept | {"PYTHONHASHSEED": "7"},
    )
    assert child.stdout.split() == [hal.fingerprint(), hal.fingerprint("cpu")]


def test_a_fingerprint_does_not_depend_on_the_order_of_import() -> None:
    plugins = [one("b"), one("c"), NATIVE]
    assert len({fingerprint(*each) for each in itertools.permutations(plugins)}) == 1


def test_a_fingerprint_changes_with_what_may_serve() -> None:
    newer = attrs.evolve(one("b"), version="1.1")
    tables = [
        [NATIVE],
        [one("b"), NATIVE],
        [one("c"), NATIVE],
        [newer, NATIVE],
        [one("b", "other"), NATIVE],
        [one("b"), one("c"), NATIVE],
        [one("b"), one("c", supports=refusing("no"))],
        [backend("b", softmax=[kernel("softmax", "x"), kernel("softmax", "y")])],
        [backend("b", softmax=[kernel("softmax", "y"), kernel("softmax", "x")])],
    ]
    assert len({fingerprint(*table) for table in tables}) == len(tables)
    assert fingerprint(NATIVE) != fingerprint(NATIVE, device=attrs.evolve(ACME, type="other"))


def test_a_fingerprint_of_a_device_is_that_of_the_next_ranks() -> None:
    assert fingerprint(NATIVE) == fingerprint(NATIVE, device=attrs.evolve(ACME, index=1))


def test_a_fingerprint_changes_with_what_is_forced_or_preferred() -> None:
    with installed(one("b"), NATIVE):
        plain = hal.fingerprint(ACME)
        with hal.prefer("native"):
            preferred = hal.fingerprint(ACME)
        with hal.use("native"):
            forced = hal.fingerprint(ACME)
        with hal.use(layer_norm="b"):
            nothing = hal.fingerprint(ACME)
        with hal.prefer("b"):
            assert hal.fingerprint(ACME) == plain
        assert hal.fingerprint(ACME) == plain
    assert len({plain, preferred, forced, nothing}) == 4
