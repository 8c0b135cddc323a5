"""Run the `broker` command by `python -m broker.cli`."""

from broker.cli import main

main(prog_name="broker")
