"""Run any program as a tool: it is started for each job, and need not know the broker.

command            finds the program, and checks that it can run, before the tool accepts work
placeholders       fields of the payload in the command
folders            the tool's folder on this machine: its lock, and a scratch folder for each job
orphans            ends processes that a killed run of the tool has left running
process_groups     sends signals to a program and the processes that it has started
process            a program: its start, its output, its end
line_splitter      splits bytes into lines
pending_reports    a bounded queue of reports
reports            sends what a program writes to stderr to the broker
outcome            turns its output and its exit status into a result or an error
background_writer  writes to a terminal from a thread, so that the terminal blocks nothing
runner             puts all of them together: the handler of a `broker.client.Tool`
"""
