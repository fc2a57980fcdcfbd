"""What keeps a store in order when Ctrl-C is pressed in the middle of a change."""

from collections.abc import Callable


def finish(repair: Callable[[], None]) -> None:
    """Run a repair to its end, however often Ctrl-C is pressed meanwhile.

    Python raises KeyboardInterrupt after whatever call is running, faiss' long ones too: between any two steps of a
    change. Where that leaves something to repair, the caller repairs it by this and raises what interrupted it.

    Args:
        repair: May be started again from any of its steps.
    """
    while True:
        try:
            repair()
        except KeyboardInterrupt:  # one more: the first is raised once this is done
            continue
        return
