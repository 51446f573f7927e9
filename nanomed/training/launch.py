"""A training script's main(), in one process or in one of torchrun's."""

from collections.abc import Callable

from nanomed import cli
from nanomed.threads import of_torchrun


def execute(main: Callable) -> None:
    """cli.execute(), where the processes of torchrun do one thing together."""

    def together():
        if not of_torchrun():
            return main()
        from nanomed.training import distributed  # now, so that --help need not wait for PyTorch

        return distributed.together(main)

    cli.execute(together)
