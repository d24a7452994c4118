"""Which tier feeds a device: decided by what was asked for and what is there, and said aloud."""

from featurestore.errors import DefinitionError
from featurestore.loaders.device import Device
from featurestore.loaders.loader import Tier
from featurestore.loaders.options import DEVICE_IO
from featurestore.loaders.prepare import Prepared
from featurestore.loaders.resident import FREE_SHARE, ResidentTier
from featurestore.loaders.streamed import StreamedTier


def device_tier(prepared: Prepared, device: Device) -> Tier:
    """Choose between the resident and the streamed tier, and whether files are read by GPUDirect.

    Raises:
        DefinitionError: an unknown `io`.
    """
    io = prepared.options.io
    if io not in DEVICE_IO:
        raise DefinitionError(f"io is {io!r}", hint=f"one of {', '.join(DEVICE_IO)}")
    asked = f"io={io!r} was asked for"
    if io == "pinned":
        return StreamedTier(prepared, device, reason=asked)
    direct = None
    if io == "gds":
        from featurestore.loaders.kvikio_reader import open_direct_reader  # noqa: PLC0415 - only when asked for

        direct, why = open_direct_reader()
        if direct is None:
            return StreamedTier(prepared, device, reason=f"{asked}, but {why}")
        asked = f"{asked}: {why}"
    resident = ResidentTier(prepared, device, reason="", direct=direct)
    needed, free = resident.needed_bytes, device.free_bytes()
    if io == "resident" or needed <= FREE_SHARE * free:
        resident.reason = f"{'it fits' if io == 'auto' else asked}: {needed} bytes, {free} free"
        return resident
    too_much = f"{needed} bytes are more than {FREE_SHARE:.0%} of the {free} free on the device"
    reason = too_much if io == "auto" else f"{asked}; {too_much}"
    return StreamedTier(prepared, device, reason=reason, direct=direct)
