"""hal: one name for each LLM operator, the best kernel for the device its tensors are on."""

from hal import graphs, ops
from hal.errors import BackendError, HalError, InvalidInput, InvalidType, NoKernel
from hal.fakes import fake_if_exists
from hal.functions import install
from hal.hardware import Capability, Device
from hal.hookspecs import Backend, hookimpl
from hal.op import Kernel, prepared
from hal.plugins import repair
from hal.policy import prefer, use
from hal.probe import device, devices, supports
from hal.query import bind, explain, require, trace
from hal.repairs import Repair
from hal.report import backends, fingerprint, report
from hal.version import __version__

__all__ = [
    "Backend",
    "BackendError",
    "Capability",
    "Device",
    "HalError",
    "InvalidInput",
    "InvalidType",
    "Kernel",
    "NoKernel",
    "Repair",
    "__version__",
    "backends",
    "bind",
    "device",
    "devices",
    "explain",
    "fake_if_exists",
    "fingerprint",
    "graphs",
    "hookimpl",
    "ops",
    "prefer",
    "prepared",
    "repair",
    "report",
    "require",
    "supports",
    "trace",
    "use",
]

install()
