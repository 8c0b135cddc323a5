"""Any program as a tool: it is started for each piece of work, and need not know of the broker.

command       finds the program, and sees that it can run, before any work is taken
placeholders  fields of the payload in the command
folders       the tool's folder on this machine: its lock, and a scratch folder for each work
leftovers     ends what a run that was killed has left behind
environment   what a program finds in its environment
groups        signals to a program and what it has started
process       a program: its start, its output, its end
lines         bytes to lines
backlog       what waits to be reported, bounded
reports       what it writes to stderr, to the broker
outcome       what it printed and how it ended, as a result or an error
aside         what is written for whoever may read it
runner        all of them together: the handler of a `broker.client.Tool`
"""
