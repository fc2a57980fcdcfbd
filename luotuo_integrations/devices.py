"""Which device and which floating-point type to compute with."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str | None) -> torch.device:
    """Turn a device name into a device that is there.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or None for the best there is: cuda, mps, cpu.

    Raises:
        ValueError: If the name is unknown or this machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        msg = f"device={name!r} is unknown; use 'cpu', 'cuda', 'cuda:0', 'mps', or None for the best there is"
        raise ValueError(msg) from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        msg = f"device={name!r}, but torch sees {count} CUDA devices here; use device='cpu', or install torch for CUDA"
        raise ValueError(msg)
    if device.type == "mps" and not has_mps:
        msg = "device='mps', but torch sees no Apple GPU here; use device='cpu'"
        raise ValueError(msg)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn a dtype name into a torch dtype; ``"auto"`` is float32 except on CUDA: bfloat16, else float16.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name not in DTYPES:
        msg = f"dtype={name!r} is unknown; use 'auto', {', '.join(map(repr, DTYPES))}"
        raise ValueError(msg)
    return DTYPES[name]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that a device, or the host, is out of memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
