"""One thin runner per stage: reads the config, runs the stage, and writes the manifest."""

import sys

if sys.argv[:1] == ["-m"]:
    # `python -m stages.<stage>` imports this package before the stage's module, which imports torch.
    from stages import interrupt, threads

    interrupt.STOP.begin_command()
    threads.choose_wait_policy()
