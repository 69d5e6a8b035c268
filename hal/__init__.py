"""hal: one name for each LLM operator, the best kernel for the device its tensors are on."""

from hal import graphs, ops
from hal.compat import Repair
from hal.errors import BackendError, HalError, InvalidInput, InvalidType, NoKernel
from hal.functions import install
from hal.hardware import Capability, Device
from hal.hookspecs import Backend, hookimpl
from hal.op import Kernel, prepared
from hal.policy import prefer, use
from hal.probe import device, devices, supports
from hal.query import bind, explain, require, trace
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
    "fingerprint",
    "graphs",
    "hookimpl",
    "ops",
    "prefer",
    "prepared",
    "report",
    "require",
    "supports",
    "trace",
    "use",
]

install()
