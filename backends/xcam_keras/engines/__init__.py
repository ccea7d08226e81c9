"""Engine-specific parts of KerasModel: one module for each engine; only that of the engine in use is imported.

The module of an engine defines four names:

    Recording(model, shape, dtype, layout)   runs a model once, for inputs [N, *shape]: see xcam.contract.recorded
    device_name(device)                      the user's name of a device → the engine's; raises InputError
    running(device)                          a context: on that device, and exhausted memory is a MemoryError
    random_state()                           a context that restores the engine's random state, where it is global
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from xcam.contract.messages import unknown_device


def standard_device(device: str, aliases: Mapping[str, str], known: Collection[str], engine: str) -> str:
    """Return `kind:index` for a device such as `cpu`, `cuda` or `GPU:1`, checked against the devices in `known`."""
    kind, _, index = device.lower().partition(":")
    name = f"{aliases.get(kind, kind)}:{index or 0}"
    if name not in known:
        raise unknown_device(device, engine, known)
    return name
