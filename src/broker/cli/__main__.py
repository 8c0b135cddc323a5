"""Run the `broker` command as `python -m broker.cli`."""

from broker.cli import main

main(prog_name="broker")
