"""Let a process obey permissions, though it is the superuser's."""

import ctypes

DROP_FROM_BOUNDING_SET, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2  # of linux/prctl.h and linux/capability.h


def obey_permissions() -> None:
    """Let the program that this process becomes obey permissions: a preexec_fn. Linux only."""
    prctl = ctypes.CDLL(None).prctl
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
        prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)
